"""Conformance suites: what moopt asks of a plug-in, as tests that its author runs too. Needs pytest."""
