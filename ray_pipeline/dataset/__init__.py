"""All that lies in the output: layout, schema, staging, commit, reading."""
