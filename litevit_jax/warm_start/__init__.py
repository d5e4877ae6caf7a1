"""What a run takes from another one: encoder, images, parameters, a teacher."""
