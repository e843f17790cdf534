"""Predictions of several models, put together."""
