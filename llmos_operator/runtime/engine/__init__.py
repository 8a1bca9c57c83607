"""The engine process: a template that forks, the message loop, requests between socket and model.

Owns one loaded model's life and the turn of scheduler and backend.
Must not know HTTP; nothing here is imported by the front.
"""
