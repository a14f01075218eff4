"""Results of runs beside published numbers: collected, drawn and written."""
