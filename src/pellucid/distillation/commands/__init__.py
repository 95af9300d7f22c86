"""The commands of this folder. Nothing heavy is imported until one runs."""
