"""The server: requests over HTTP in the form that clients of OpenAI speak, and the process that the engine runs in."""
