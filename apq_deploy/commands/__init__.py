"""The commands of `apq-deploy`: each parses, calls and prints. Heavy imports stay inside the functions."""
