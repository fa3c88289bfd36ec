"""Figures of the published implementation, and the recipe of the tensors that they were made from."""
