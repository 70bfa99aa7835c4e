"""Faults that are planted on purpose, and whether they are survived as documented. Each module has NAME, QUICK, FULL
and `tries(folder, count)`, which gives so many names with a function that raises AssertionError where one was not."""
