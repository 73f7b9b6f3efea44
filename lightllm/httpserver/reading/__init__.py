"""What all APIs read alike: types of fields, the table of fields that decide about an answer, prompts, constraints."""
