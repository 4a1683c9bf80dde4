"""llm_metering: under construction."""
