# cython: language_level=3
"""The arguments of MAIL, RCPT and BDAT as the sink reads them: octets in, places and numbers out, no state.

Part of the kernel `sink`.  Spec: RFC 5321 §4.1.2, RFC 1870 §4, RFC 6531 §3.4, RFC 3461 §4, RFC 3030 §2.  Every read is
at an index that the loop around it has compared with the length; results point into the octets that were given.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memchr, strlen

cdef enum:
    _MAX_PATH = 1024

# what EHLO told of, as bits; engine/smtp/server.py has the same table by keyword
cdef enum Offered:
    OFFERED_SIZE = 1
    OFFERED_BODY = 2
    OFFERED_SMTPUTF8 = 4
    OFFERED_DSN = 8
    OFFERED_CHUNKING = 16
    OFFERED_AUTH = 32
    OFFERED_PIPELINING = 64
    OFFERED_REQUIRETLS = 128
    OFFERED_PRIORITY = 256
    OFFERED_DELIVERBY = 512
    OFFERED_RRVS = 1024

cdef struct Path:
    const char *text
    Py_ssize_t length
    # the text from the opening bracket to the end of the line
    const char *whole
    Py_ssize_t whole_length
    bint ascii
    bint smtputf8
    # value of SIZE, NULL without one
    const char *size
    Py_ssize_t size_length


cdef inline char _upper(char octet) noexcept nogil:
    return octet - 32 if c'a' <= octet <= c'z' else octet


cdef inline bint _is_word(const char *text, Py_ssize_t length, const char *word) noexcept nogil:
    """Whether `text` is `word` (upper case) without regard to case."""
    cdef Py_ssize_t index
    if length != <Py_ssize_t>strlen(word):
        return False
    for index in range(length):
        if _upper(text[index]) != word[index]:
            return False
    return True


cdef inline uint32_t _parameter_extension(const char *text, Py_ssize_t length, bint of_mail) noexcept nogil:
    """The extension that brings a parameter, 0 for an unknown one."""
    if of_mail:
        if _is_word(text, length, b"SIZE"):
            return OFFERED_SIZE
        if _is_word(text, length, b"BODY"):
            return OFFERED_BODY
        if _is_word(text, length, b"SMTPUTF8"):
            return OFFERED_SMTPUTF8
        if _is_word(text, length, b"RET") or _is_word(text, length, b"ENVID"):
            return OFFERED_DSN
        if _is_word(text, length, b"AUTH"):
            return OFFERED_AUTH
        if _is_word(text, length, b"REQUIRETLS"):
            return OFFERED_REQUIRETLS
        if _is_word(text, length, b"MT-PRIORITY"):
            return OFFERED_PRIORITY
        if _is_word(text, length, b"BY"):
            return OFFERED_DELIVERBY
        return 0
    if _is_word(text, length, b"NOTIFY") or _is_word(text, length, b"ORCPT"):
        return OFFERED_DSN
    if _is_word(text, length, b"RRVS"):
        return OFFERED_RRVS
    return 0


cdef inline const char *_parse_path(
    const char *text, Py_ssize_t length, bint of_mail, uint32_t offered, Path *path
) noexcept nogil:
    """Parse the argument of MAIL or RCPT; return the reply to an error, or NULL."""
    cdef const char *keyword = b"FROM:" if of_mail else b"TO:"
    cdef Py_ssize_t start = 5 if of_mail else 3
    cdef Py_ssize_t index, word, name_end
    cdef unsigned char octet
    if length < start or not _is_word(text, start, keyword):
        return b"501 5.5.4 Syntax error\r\n"
    while start < length and text[start] == c' ':
        start += 1
    path.ascii = True
    for index in range(start, length):
        octet = <unsigned char>text[index]
        if octet < 0x20 or octet == 0x7F:
            return b"501 5.5.4 Syntax error\r\n"
    if start >= length or text[start] != c'<':
        return b"501 5.1.7 Bad address\r\n"
    path.whole = text + start
    path.whole_length = length - start
    index = start + 1
    while index < length and text[index] != c'>':
        if text[index] == c'"':
            index += 1
            while index < length and text[index] != c'"':
                index += 2 if text[index] == c'\\' else 1
        elif text[index] == c'<' or text[index] == c'\\' or text[index] == c' ':
            return b"501 5.1.7 Bad address\r\n"
        index += 1
    path.text = text + start + 1
    path.length = index - start - 1
    if index >= length or path.length > _MAX_PATH or (index + 1 < length and text[index + 1] != c' '):
        return b"501 5.1.7 Bad address\r\n"
    if path.length == 0:
        if not of_mail:
            return b"501 5.1.3 Bad address\r\n"
    elif memchr(path.text, c'@', path.length) == NULL and not _is_word(path.text, path.length, b"POSTMASTER"):
        return b"501 5.1.3 Bad address\r\n"
    for word in range(path.length):
        if path.text[word] & 0x80:
            path.ascii = False
            break
    path.smtputf8 = False
    path.size = NULL
    path.size_length = 0
    index += 1
    while index < length:
        while index < length and text[index] == c' ':
            index += 1
        word = index
        while index < length and text[index] != c' ':
            index += 1
        if index == word:
            break
        name_end = word
        while name_end < index and text[name_end] != c'=':
            name_end += 1
        if not _parameter_extension(text + word, name_end - word, of_mail) & offered:
            return b"555 5.5.4 Unknown parameter\r\n"
        if of_mail and _is_word(text + word, name_end - word, b"SMTPUTF8"):
            path.smtputf8 = True
        elif of_mail and _is_word(text + word, name_end - word, b"SIZE"):
            path.size = text + (name_end + 1 if name_end < index else index)
            path.size_length = index - name_end - 1 if name_end < index else 0
    return NULL


cdef inline bint _parse_number(const char *text, Py_ssize_t length, uint64_t *number) noexcept nogil:
    """Parse 1 to 19 digits and nothing else; 19 digits cannot overflow."""
    cdef Py_ssize_t index
    number[0] = 0
    if length < 1 or length > 19:
        return False
    for index in range(length):
        if not c'0' <= text[index] <= c'9':
            return False
        number[0] = number[0] * 10 + <uint64_t>(text[index] - c'0')
    return True


cdef inline bint _parse_chunk(const char *text, Py_ssize_t length, uint64_t *size, bint *last) noexcept nogil:
    """Parse the argument of BDAT: a number, and LAST or nothing after it."""
    cdef Py_ssize_t digits = 0
    cdef Py_ssize_t index
    while digits < length and c'0' <= text[digits] <= c'9':
        digits += 1
    index = digits
    while index < length and text[index] == c' ':
        index += 1
    last[0] = index > digits and length - index >= 4 and _is_word(text + index, 4, b"LAST")
    if last[0]:
        index += 4
        while index < length and text[index] == c' ':
            index += 1
    return index == length and _parse_number(text, digits, size)
