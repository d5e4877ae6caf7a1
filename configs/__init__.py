"""Recipes: one per file. Each has get_config(arg=None) -> a locked ConfigDict."""
