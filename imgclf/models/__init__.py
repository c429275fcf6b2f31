"""Backbone, head and the network of both."""
