"""Networks in flax.linen; they know no loss, data, optimizer or mesh."""
