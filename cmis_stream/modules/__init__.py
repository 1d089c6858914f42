"""The product modules; each meets the others through topics, references and ports only."""
