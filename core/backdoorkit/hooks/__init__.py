"""Plugins: how they are described, configured, found and called. Imports no torch."""
