"""Grade-school mathematics (GSM8K) with a calculator."""
