def not_applying(reads):
    return {}
