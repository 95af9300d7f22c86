"""Pictures of what each layer keeps of an image: from the codes of a sparse layer, or by inverting a plain one."""
