"""Pictures compared and scored."""
