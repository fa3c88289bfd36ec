"""Showing what a trained network looks at, and what its training images look like."""
