"""Inner-task models: linen inside, plain functions outside; every parameter named."""
