"""The project's measurements, each with its rivals in the same run: `python -m bench`, `make bench`, `bench-quick`."""
