"""Tests of the doctor, with the extensions that it looks at."""
