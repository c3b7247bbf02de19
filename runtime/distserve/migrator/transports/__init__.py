"""Ways to move KV between two pools, behind one interface (`base.ReadPath`)."""
