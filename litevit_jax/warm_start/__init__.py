"""Reads what a run takes from another: encoder, images, parameters, a teacher."""
