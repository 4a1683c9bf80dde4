"""Thin listeners for libraries that make the calls themselves: each tells the recorder what it was told.

Each module needs its library and is imported by name, such as `llm_metering.adapters.langchain`. One call
that several of them see, or a wrapped client and the middleware beside them, counts once.
"""
