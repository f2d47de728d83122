"""What remains of training: records in JSON, tables in Markdown and pictures."""
