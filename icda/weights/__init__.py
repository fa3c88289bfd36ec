"""Weights that come in: files of every form the field uses, their layouts, and encoders filled from them."""
