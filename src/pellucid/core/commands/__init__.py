"""The commands of the ground, a file each; nothing heavy is imported until one runs."""
