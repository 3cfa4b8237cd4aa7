"""Results as files, and what is said of them: statistics, tables, plots, reports."""
