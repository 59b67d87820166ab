"""Which vocabulary columns are recorded at every position; shared by the recorder and the tests."""

VOCABULARY_COLUMNS = 16


def columns(vocabulary: int) -> list[int]:
    """Evenly spread columns, the first and the last included."""
    return [i * (vocabulary - 1) // (VOCABULARY_COLUMNS - 1) for i in range(VOCABULARY_COLUMNS)]
