"""The command line, `llm-metering`. It alone may use every other part; typer and rich are its extra."""
