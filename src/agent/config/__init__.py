"""What operators can set: the schema, where its values come from, and how they are shown."""
