"""Bundles measured side by side: what is started, watched and put together."""
