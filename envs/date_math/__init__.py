"""DateMath: dates some days apart."""
