"""Capture: what sees an LLM call and records its usage. Three surfaces, one record."""
