"""What the index costs and what it gives, measured: see README.md."""
