"""The dialect of OpenAI: images, plain and streamed, and models."""
