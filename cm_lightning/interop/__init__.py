"""Reading others' files: OpenAI's, EDM's and diffusers' networks. Nothing from a file is executed."""
