# cython: language_level=3, boundscheck=True, wraparound=False
"""Evaluate a compiled expansion over a flat array of slots.

Twin: tests/reference/expand_reference.py runs the same programs, slowly.
Input: a `Code` (numbers, constants, places where messages are wrapped) made by engine.expand.compiler, and a `State`.
Output: octets, or an ExpandError.  An instruction is five numbers: what, and four operands.  An operand from 0 up is a
slot, one below 0 is a constant (the constant at ~operand); targets of jumps are instruction numbers.
Bounds: `Code.__init__` checks every operand, target and list of operands against the table of instructions, and nothing
can change them afterwards; what a slot holds is checked when it is used.  Loops, nested runs and octets are counted
against a budget, so every evaluation ends.
Directives: wraparound is off everywhere (negative operands are resolved by hand); boundscheck is off in the functions
that index slots and marks by operands of a checked `Code`.
Long because the evaluator is one loop over one table of instructions, and what it calls must be inlined into it or be
reachable without a function in Python.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_CheckExact, PyDict_GetItem
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.string cimport memcmp, memcpy, memset

from engine.errors import ExpandError
from engine.expand.taint import Tainted, kind_of_taint

cdef extern from *:
    """
    /* What bytes.__new__ does for a subclass, without the arguments of a call.  The class has no slots and no __dict__,
       so an instance is octets and nothing else; the hash of a bytes object is made when it is asked for. */
    static PyObject *tainted_octets(PyTypeObject *kind, PyObject *octets) {
        Py_ssize_t size = PyBytes_GET_SIZE(octets);
        PyObject *copy = kind->tp_alloc(kind, size);
        if (copy == NULL)
            return NULL;
        memcpy(PyBytes_AS_STRING(copy), PyBytes_AS_STRING(octets), size + 1);
    _Py_COMP_DIAG_PUSH
    _Py_COMP_DIAG_IGNORE_DEPR_DECLS
        ((PyBytesObject *)copy)->ob_shash = -1;
    _Py_COMP_DIAG_POP
        return copy;
    }
    """
    ctypedef struct PyTypeObject:
        pass
    object tainted_octets(PyTypeObject* kind, object octets)

#: what one evaluation may cost, nested ones included; a step is 50 ns or so, and all are used up in some seconds
STEP_LIMIT = 10_000_000
OCTET_LIMIT = 64 << 20
NESTING_LIMIT = 40

cdef enum:
    #: what a call of a function in Python costs
    CALL_STEPS = 20

cdef enum:
    #: of groups that have different marks
    MIXED = -1
    CLEAN = 0
    TAINTED = 1
    FIRST_QUOTER = 2

#: mark -> class of what has it, by the lookup type whose quoting made the text safe
cdef list _kinds = [None, Tainted]
cdef dict _quoter_marks = {}


def quoter_mark(str name):
    """The number that marks text quoted for the lookup type `name`."""
    mark = _quoter_marks.get(name)
    if mark is None:
        mark = len(_kinds)
        _kinds.append(kind_of_taint(name))
        _quoter_marks[name] = mark
    return mark


cdef class State:
    """The part of a scope that the evaluator reads at C speed; engine.expand.scope.Scope is the whole of it."""

    cdef public object variables
    cdef public object value
    cdef public object item
    cdef public tuple groups
    cdef public long long steps
    cdef public long long octets
    cdef public int depth

    def __init__(self):
        self.variables = {}
        self.value = None
        self.item = None
        self.groups = ()
        self.steps = 0
        self.octets = 0
        self.depth = 0


cpdef enum Op:
    RETURN
    MOVE
    VAR
    VAR_OTHER
    VALUE
    ITEM
    GROUP
    JOIN
    HOT
    APPLY
    QUOTE
    CALL
    SEAM
    JUMP
    JUMP_NONE
    JUMP_EMPTY
    COMPARE
    NUMBER
    TEST
    SEAM_TEST
    MATCH
    INLIST
    SET_VALUE
    SAVE_VALUE
    SET_ITEM
    SAVE_ITEM
    SET_GROUPS
    SAVE_GROUPS
    SPLIT
    NEXT
    NEW_LIST
    ADD
    JOIN_LIST
    SORT_ADD
    EXPAND
    SUBSTITUTE
    FAIL
    REFUSE_TAINTED
    MATCH_LIST
    CUT


#: what the operands of each instruction are: S slot that is written, R slot that is read, W two slots that are written,
#: O operand, K constant, T target, J target and wanted answer, L list of operands (two numbers), C comparison,
#: # any number
_OPERANDS = {
    Op.RETURN: "O", Op.MOVE: "SO", Op.VAR: "SK#K", Op.VAR_OTHER: "SK", Op.VALUE: "S", Op.ITEM: "S", Op.GROUP: "S#",
    Op.JOIN: "SL", Op.HOT: "S#O", Op.APPLY: "SKO#", Op.QUOTE: "SKO", Op.CALL: "SKL", Op.SEAM: "SKL", Op.JUMP: "T",
    Op.JUMP_NONE: "OT", Op.JUMP_EMPTY: "OT#", Op.COMPARE: "COOJ", Op.NUMBER: "SO", Op.TEST: "KLJ",
    Op.SEAM_TEST: "KLJ", Op.MATCH: "OO#J", Op.INLIST: "OO#J", Op.SET_VALUE: "O", Op.SAVE_VALUE: "S", Op.SET_ITEM: "O",
    Op.SAVE_ITEM: "S", Op.SET_GROUPS: "R", Op.SAVE_GROUPS: "S", Op.SPLIT: "WO#", Op.NEXT: "SRT", Op.NEW_LIST: "S",
    Op.ADD: "RO", Op.JOIN_LIST: "SRR#", Op.SORT_ADD: "ROO#", Op.EXPAND: "SO#", Op.SUBSTITUTE: "SOOO", Op.FAIL: "K",
    Op.REFUSE_TAINTED: "OK", Op.MATCH_LIST: "KO#J", Op.CUT: "SOK",
}
#: instructions that no other follows
_LAST = (Op.RETURN, Op.JUMP, Op.FAIL)


cpdef enum Compare:
    EQ
    EQI
    LT
    LE
    GT
    GE
    LTI
    LEI
    GTI
    GEI
    NUM_EQ
    NUM_LT
    NUM_LE
    NUM_GT
    NUM_GE


cdef class Hooks:
    """What the evaluator calls in Python: set once by engine.expand.runtime."""

    cdef public object convert
    cdef public object variable
    cdef public object integer
    cdef public object split_json
    cdef public object compile_regex
    cdef public object compile_text
    cdef public object address_part
    #: of the library of regular expressions: ``match``, ``match_substring_span_bynumber``, its error
    cdef public object regex_match
    cdef public object regex_span
    cdef public object regex_error
    #: what the functions for `extract` and its like leave to Python
    cdef public object unescape
    cdef public object check_number
    cdef public object time_interval


hooks = Hooks()


@cython.freelist(16)
cdef class Frame:
    """What one run of a program changes."""

    cdef list slots
    cdef int* marks
    cdef int[32] few
    cdef object value
    cdef object item
    cdef tuple groups
    cdef int value_mark
    cdef int item_mark
    cdef int groups_mark

    def __cinit__(self):
        self.marks = NULL

    def __dealloc__(self):
        if self.marks != self.few:
            PyMem_Free(self.marks)


cdef inline int join_marks(int first, int second) noexcept:
    if first == second or second == CLEAN:
        return first
    if first == CLEAN:
        return second
    return TAINTED


cdef inline int part_mark(int mark) noexcept:
    # a part of quoted text, or what is made of parts, is not quoted any more: an escape may be cut in two
    return TAINTED if mark else CLEAN


cdef inline int mark_of(object value) except -1:
    if PyBytes_CheckExact(value):
        return CLEAN
    if type(value) is Tainted:
        return TAINTED
    if isinstance(value, Tainted):
        quoter = value.quoter
        return TAINTED if quoter is None else quoter_mark(quoter)
    return CLEAN


cdef inline object plain(object value):
    """Octets without the mark they carry; the marks are beside the slots in here."""
    return bytes(value) if isinstance(value, Tainted) else value


cdef inline bytes octets(object value):
    """`value`, which must be octets: nothing else may be looked at as such."""
    if not PyBytes_CheckExact(value):
        raise TypeError("not octets")
    return <bytes> value


cdef object marked(object value, int mark):
    """`value` as it may leave the evaluator: `Tainted` when it has a mark."""
    if mark == CLEAN:
        return octets(value)
    return tainted_octets(<PyTypeObject*> _kinds[mark], octets(value))


cdef inline unsigned char lowered(unsigned char octet) noexcept:
    return octet + 32 if 65 <= octet <= 90 else octet


cdef bytes lower(bytes text):
    cdef const unsigned char* source = <const unsigned char*> PyBytes_AS_STRING(text)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    cdef Py_ssize_t at = 0
    while at < size and not 65 <= source[at] <= 90:
        at += 1
    if at == size:
        return text
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    cdef unsigned char* out = <unsigned char*> PyBytes_AS_STRING(result)
    for at in range(size):
        out[at] = lowered(source[at])
    return result


cdef bytes upper(bytes text):
    cdef const unsigned char* source = <const unsigned char*> PyBytes_AS_STRING(text)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    cdef Py_ssize_t at = 0
    while at < size and not 97 <= source[at] <= 122:
        at += 1
    if at == size:
        return text
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    cdef unsigned char* out = <unsigned char*> PyBytes_AS_STRING(result)
    for at in range(size):
        out[at] = source[at] - 32 if 97 <= source[at] <= 122 else source[at]
    return result


cdef inline bint simple_octet(unsigned char octet) noexcept:
    # letters, digits and - . _ + : no quoting, comment or route can be hidden in these
    return (97 <= octet <= 122 or 48 <= octet <= 57 or 65 <= octet <= 90
            or octet == 45 or octet == 46 or octet == 95 or octet == 43)


cdef bytes address_part(bytes text, bint domain):
    """A part of a plain address; any other goes to the whole address parser."""
    cdef const unsigned char* source = <const unsigned char*> PyBytes_AS_STRING(text)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    cdef Py_ssize_t at, place = -1
    cdef unsigned char before = 46
    for at in range(size):
        if source[at] == 64 and place < 0 and at > 0:
            place = at
            before = 46
            continue
        if not simple_octet(source[at]):
            return hooks.address_part(text, domain)
        if place >= 0:
            # labels begin and end with a letter or digit
            if source[at] == 95 or source[at] == 43:
                return hooks.address_part(text, domain)
            if (source[at] == 45 or source[at] == 46) and (before == 46 or before == 45):
                return hooks.address_part(text, domain)
        before = source[at]
    if size == 0:
        return text
    if place < 0:
        return b"" if domain else text
    if place == size - 1 or before == 46 or before == 45:
        return hooks.address_part(text, domain)
    if domain:
        return PyBytes_FromStringAndSize(<const char*> source + place + 1, size - place - 1)
    return PyBytes_FromStringAndSize(<const char*> source, place)


cdef bytes decimal(long long number):
    """A number as digits, with a minus when it is below 0."""
    cdef char[20] digits
    cdef int at = 20
    # the least number has no positive of its own, except without a sign
    cdef unsigned long long left = 0 - <unsigned long long> number if number < 0 else <unsigned long long> number
    while True:
        at -= 1
        digits[at] = <char> (48 + left % 10)
        left //= 10
        if left == 0:
            break
    if number < 0:
        at -= 1
        digits[at] = 45
    return PyBytes_FromStringAndSize(digits + at, 20 - at)


cdef inline bint is_space(unsigned char octet) noexcept:
    return octet == 32 or 9 <= octet <= 13


# -- regular expressions -----------------------------------------------------------------------------------------------

@cython.final
cdef class Regex:
    """One compiled pattern.  Immutable and safe to share between threads; engine.expand.regexes makes them.

    Args:
        pattern: what was compiled, for messages.
        code, context: those of the library.
        groups: how many of its groups an expansion sees.
    """

    cdef readonly bytes pattern
    cdef readonly int groups
    cdef object _code
    cdef object _context

    def __init__(self, bytes pattern not None, code, context, int groups):
        if groups < 0:
            raise ValueError("a pattern has no fewer groups than none")
        self.pattern = pattern
        self._code = code
        self._context = context
        self.groups = groups

    cdef object _matched(self, bytes subject, Py_ssize_t start, unsigned int options):
        try:
            found = hooks.regex_match(self._code, subject, PyBytes_GET_SIZE(subject), start, self._context, options)
        except hooks.regex_error as error:
            shown = self.pattern.decode("utf-8", "surrogateescape")
            raise ExpandError(f"regular expression {shown!r} gave up: {error.msg}") from None
        return (<tuple?> found)[0]

    cdef bytes _group(self, object data, bytes subject, int number):
        """A group, empty when it is not set."""
        cdef tuple place = hooks.regex_span(data, subject, number)
        cdef Py_ssize_t start = place[0]
        cdef Py_ssize_t end = place[1]
        if start < 0 or end <= start or end > PyBytes_GET_SIZE(subject):
            return b""
        if start == 0 and end == PyBytes_GET_SIZE(subject):
            return subject
        return PyBytes_FromStringAndSize(PyBytes_AS_STRING(subject) + start, end - start)

    cdef tuple _all(self, object data, bytes subject):
        cdef int number
        if self.groups == 0:
            return (self._group(data, subject, 0),)
        return tuple([self._group(data, subject, number) for number in range(self.groups + 1)])

    def search(self, subject not None):
        """The whole match and each group, unset ones empty; None when there is no match.

        Raises:
            ExpandError: the match met a limit.
        """
        cdef bytes text = subject if PyBytes_CheckExact(subject) else bytes(subject)
        data = self._matched(text, 0, 0)
        return None if data is None else self._all(data, text)

    def span(self, subject not None, Py_ssize_t start, *, bint at_start=False):
        """First match at or after `start`: its place and its groups; `at_start`: only there, and not an empty one.

        Raises:
            ExpandError: the match met a limit.
        """
        cdef bytes text = subject if PyBytes_CheckExact(subject) else bytes(subject)
        # PCRE2_ANCHORED | PCRE2_NOTEMPTY_ATSTART... PCRE2_NOTEMPTY is what Perl's /g does after an empty match
        data = self._matched(text, start, <unsigned int> 0x80000004 if at_start else 0)
        if data is None:
            return None
        first, last = hooks.regex_span(data, text, 0)
        return first, last, self._all(data, text)


# -- arithmetic: engine.expand.numbers.evaluate ------------------------------------------------------------------------

cdef struct Sum:
    const unsigned char* text
    Py_ssize_t at
    Py_ssize_t size
    int depth
    bint decimal
    const char* why

cdef enum:
    #: parentheses and signs inside each other
    SUM_NESTING = 100

cdef long long MAXIMUM = 0x7FFFFFFFFFFFFFFF
cdef long long MINIMUM = <long long> (<unsigned long long> 1 << 63)


cdef inline int sum_peek(Sum* of) noexcept:
    return of.text[of.at] if of.at < of.size else 0


cdef inline int sum_skip(Sum* of) noexcept:
    while of.at < of.size and is_space(of.text[of.at]):
        of.at += 1
    return sum_peek(of)


cdef inline int digit_of(int octet) noexcept:
    if 48 <= octet <= 57:
        return octet - 48
    octet |= 32
    return octet - 87 if 97 <= octet <= 102 else 99


cdef long long sum_literal(Sum* of) noexcept:
    cdef unsigned long long number = 0
    cdef int base = 10, digit
    cdef bint large = False
    if not of.decimal and of.text[of.at] == 48:
        base = 8
        if (of.at + 2 < of.size and of.text[of.at + 1] | 32 == 120 and digit_of(of.text[of.at + 2]) < 16):
            base = 16
            of.at += 2
    while of.at < of.size:
        digit = digit_of(of.text[of.at])
        if digit >= base:
            break
        if number > (<unsigned long long> MAXIMUM - digit) // base:
            large = True
        else:
            number = number * base + digit
        of.at += 1
    return MAXIMUM if large else <long long> number


cdef long long sum_number(Sum* of) noexcept:
    cdef int octet = sum_skip(of)
    cdef long long number = 0
    if octet == 40:
        of.depth += 1
        if of.depth > SUM_NESTING:
            of.why = b"nested too deep"
            return 0
        of.at += 1
        number = sum_or(of)
        if of.why != NULL:
            return 0
        if sum_peek(of) != 41:
            of.why = b"expecting closing parenthesis"
            return 0
        of.at += 1
        of.depth -= 1
    elif 48 <= octet <= 57:
        number = sum_literal(of)
        octet = sum_peek(of) | 32
        if octet == 107 or octet == 109 or octet == 103:
            of.at += 1
            number = <long long> (<unsigned long long> number << (10 if octet == 107 else 20 if octet == 109 else 30))
    else:
        of.why = b"expecting number or opening parenthesis"
        return 0
    sum_skip(of)
    return number


cdef long long sum_sign(Sum* of) noexcept:
    cdef int octet = sum_skip(of)
    cdef long long number
    if octet != 43 and octet != 45 and octet != 126:
        return sum_number(of)
    of.depth += 1
    if of.depth > SUM_NESTING:
        of.why = b"nested too deep"
        return 0
    of.at += 1
    number = sum_sign(of)
    of.depth -= 1
    if octet == 45:
        return <long long> (0 - <unsigned long long> number)
    return ~number if octet == 126 else number


cdef long long sum_product(Sum* of) noexcept:
    cdef long long number = sum_sign(of), second
    cdef int octet
    while of.why == NULL:
        octet = sum_peek(of)
        if octet != 42 and octet != 47 and octet != 37:
            break
        of.at += 1
        second = sum_sign(of)
        if of.why != NULL:
            break
        if octet == 42:
            number = <long long> (<unsigned long long> number * <unsigned long long> second)
        elif second == 0:
            of.why = b"divide by zero" if octet == 47 else b"modulo by zero"
        elif number == MINIMUM and second == -1:
            number = MAXIMUM
        else:
            with cython.cdivision(True):
                number = number / second if octet == 47 else number % second
    return number


cdef long long sum_sum(Sum* of) noexcept:
    cdef long long number = sum_product(of), second
    cdef int octet
    while of.why == NULL:
        octet = sum_peek(of)
        if octet != 43 and octet != 45:
            break
        of.at += 1
        second = sum_product(of)
        if of.why != NULL:
            break
        if number >= MAXIMUM // 2:
            of.why = b"overflow in sum" if octet == 43 else b"overflow in difference"
        elif octet == 43:
            number = <long long> (<unsigned long long> number + <unsigned long long> second)
        else:
            number = <long long> (<unsigned long long> number - <unsigned long long> second)
    return number


cdef long long sum_shift(Sum* of) noexcept:
    cdef long long number = sum_sum(of), second
    cdef int octet
    while of.why == NULL:
        octet = sum_peek(of)
        if (octet != 60 and octet != 62) or of.at + 1 >= of.size or of.text[of.at + 1] != octet:
            break
        of.at += 2
        second = sum_sum(of) & 63
        number = <long long> (<unsigned long long> number << second) if octet == 60 else number >> second
    return number


cdef long long sum_and(Sum* of) noexcept:
    cdef long long number = sum_shift(of)
    while of.why == NULL and sum_peek(of) == 38:
        of.at += 1
        number &= sum_shift(of)
    return number


cdef long long sum_xor(Sum* of) noexcept:
    cdef long long number = sum_and(of)
    while of.why == NULL and sum_peek(of) == 94:
        of.at += 1
        number ^= sum_and(of)
    return number


cdef long long sum_or(Sum* of) noexcept:
    cdef long long number = sum_xor(of)
    while of.why == NULL and sum_peek(of) == 124:
        of.at += 1
        number |= sum_xor(of)
    return number


cdef long long arithmetic(bytes text, bint decimal) except? -1:
    """The value of an arithmetic expression."""
    cdef Sum of
    of.text = <const unsigned char*> PyBytes_AS_STRING(text)
    of.at = 0
    of.size = PyBytes_GET_SIZE(text)
    of.depth = 0
    of.decimal = decimal
    of.why = NULL
    cdef long long number = sum_or(&of)
    if of.why == NULL and of.at < of.size:
        of.why = b"expecting operator"
    if of.why != NULL:
        done = text[:of.at].decode("utf-8", "surrogateescape")
        why = (<bytes> of.why).decode("ascii")
        raise ExpandError(f'error in expression evaluation: {why} (after processing "{done}")')
    return number


def evaluate_sum(bytes text not None, bint decimal):
    """What `eval` and `eval10` say of `text`."""
    return arithmetic(text, decimal)


cdef int order(bytes first, bytes second, bint caseless) noexcept:
    cdef const unsigned char* one = <const unsigned char*> PyBytes_AS_STRING(first)
    cdef const unsigned char* two = <const unsigned char*> PyBytes_AS_STRING(second)
    cdef Py_ssize_t size_one = PyBytes_GET_SIZE(first)
    cdef Py_ssize_t size_two = PyBytes_GET_SIZE(second)
    cdef Py_ssize_t size = size_one if size_one < size_two else size_two
    cdef Py_ssize_t at
    cdef unsigned char left, right
    cdef int result
    if caseless:
        for at in range(size):
            left = lowered(one[at])
            right = lowered(two[at])
            if left != right:
                return -1 if left < right else 1
    else:
        result = memcmp(one, two, size)
        if result:
            return result
    return -1 if size_one < size_two else 1 if size_one > size_two else 0


cdef long long number_of(object value) except? -1:
    if type(value) is int:
        return value
    cdef const unsigned char* text
    cdef Py_ssize_t at, size
    cdef long long number = 0
    if PyBytes_CheckExact(value):
        # plain digits; whatever else a number may have is for engine.expand.numbers
        text = <const unsigned char*> PyBytes_AS_STRING(value)
        size = PyBytes_GET_SIZE(value)
        if 0 < size < 19:
            for at in range(size):
                if not 48 <= text[at] <= 57:
                    break
                number = number * 10 + (text[at] - 48)
            else:
                return number
    return hooks.integer(value)


cdef int compare(int kind, object first, object second) except -1:
    cdef bytes one, two
    cdef long long left, right
    cdef int result
    if kind == EQ:
        one = octets(first)
        two = octets(second)
        return (PyBytes_GET_SIZE(one) == PyBytes_GET_SIZE(two)
                and memcmp(PyBytes_AS_STRING(one), PyBytes_AS_STRING(two), PyBytes_GET_SIZE(one)) == 0)
    if kind >= NUM_EQ:
        left = number_of(first)
        right = number_of(second)
        if kind == NUM_EQ:
            return left == right
        if kind == NUM_LT:
            return left < right
        if kind == NUM_LE:
            return left <= right
        if kind == NUM_GT:
            return left > right
        return left >= right
    result = order(octets(first), octets(second), kind == EQI or kind >= LTI)
    if kind == EQI:
        return result == 0
    if kind == LT or kind == LTI:
        return result < 0
    if kind == LE or kind == LEI:
        return result <= 0
    if kind == GT or kind == GTI:
        return result > 0
    return result >= 0


# -- hashes: engine.expand.pieces -------------------------------------------------------------------------------------

cdef const char* HASH_CODES = b"abcdefghijklmnopqrtsuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
cdef int* PRIMES = [3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101,
                    103, 107, 109, 113]


def hash_text(bytes text not None, Py_ssize_t size, int modulus):
    """The first `size` octets of `text` with the others folded in, as letters of the first `modulus` of the alphabet.

    Raises:
        ValueError: the size is not from 1 to that of the text, or the modulus not from 1 to 62.
    """
    cdef Py_ssize_t whole = PyBytes_GET_SIZE(text), at, place = 0
    if not 1 <= size <= whole or not 1 <= modulus <= 62:
        raise ValueError("no such hash")
    cdef const unsigned char* source = <const unsigned char*> PyBytes_AS_STRING(text)
    # made without contents: CPython shares the objects of single octets
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    cdef unsigned char* out = <unsigned char*> PyBytes_AS_STRING(result)
    cdef unsigned int octet, shift
    memcpy(out, source, size)
    for at in range(size, whole):
        octet = source[at]
        shift = <unsigned int> ((octet + at) & 7)
        out[place] ^= <unsigned char> ((octet << shift) | (octet >> (8 - shift)))
        place = place + 1 if place + 1 < size else 0
    for at in range(size):
        out[at] = HASH_CODES[out[at] % modulus]
    return result


def prime_sum(bytes text not None):
    """The sum of the octets of `text`, each times a prime: from the greatest down to 3, and again."""
    cdef unsigned long long total = 0
    cdef int place = 28
    cdef unsigned char octet
    for octet in text:
        total += <unsigned long long> PRIMES[place] * octet
        place = place - 1 if place else 28
    return total


def numeric_hash(long long first, long long second, bytes text not None):
    """One number below `first`, or two when `second` is not negative: `nhash`.

    Raises:
        ExpandError: a number is 0.
    """
    cdef unsigned long long total
    if not 0 <= first <= 0x7FFFFFFF or second > 0x7FFFFFFF:
        raise ValueError("no such hash")
    total = prime_sum(text)
    if first == 0 or second == 0:
        raise ExpandError("")
    if second < 0:
        return b"%d" % (total % <unsigned long long> first)
    total %= <unsigned long long> (first * second)
    return b"%d/%d" % (total // <unsigned long long> second, total % <unsigned long long> second)


# -- lists ------------------------------------------------------------------------------------------------------------

cdef inline bint is_separator(unsigned char octet) noexcept:
    return octet < 32 or octet == 127 or (octet > 32 and octet < 127 and not (
        48 <= octet <= 57 or 65 <= octet <= 90 or 97 <= octet <= 122))


cdef int named_separator(const unsigned char* text, Py_ssize_t size, Py_ssize_t* at) noexcept:
    """The separator that a leading `<c` names, or a colon; `at` becomes the place behind it."""
    cdef Py_ssize_t start = 0
    while start < size and is_space(text[start]):
        start += 1
    if size > start + 1 and text[start] == 60 and is_separator(text[start + 1]):
        at[0] = start + 2
        return text[start + 1]
    at[0] = 0
    return 58


cdef bytes stripped(const unsigned char* text, Py_ssize_t start, Py_ssize_t end):
    """An item without the white space at its end; a space behind a backslash stays."""
    cdef Py_ssize_t last = end
    while last > start and is_space(text[last - 1]):
        last -= 1
    if last < end and last > start and text[last - 1] == 92:
        last += 1
    return PyBytes_FromStringAndSize(<const char*> text + start, last - start)


cdef list split(bytes source, Py_ssize_t at, int separator):
    """The items of a list from `at` on (X-22); see engine.expand.listsplit."""
    cdef const unsigned char* text = <const unsigned char*> PyBytes_AS_STRING(source)
    cdef Py_ssize_t end = PyBytes_GET_SIZE(source)
    cdef Py_ssize_t start, stop
    cdef bint doubled = separator >= 32 and separator != 127
    cdef list items = []
    cdef list pieces
    while True:
        while at < end and is_space(text[at]) and text[at] != separator:
            at += 1
        if at >= end:
            return items
        if doubled and text[at] == separator:
            at += 1
            if at == end or text[at] != separator:
                items.append(b"")
                continue
        # the item begins here, with a separator if that was doubled
        pieces = None
        start = at
        stop = at
        if doubled and text[stop] == separator:
            stop += 1
        while True:
            while stop < end and text[stop] != separator:
                stop += 1
            if not doubled or stop + 1 >= end or text[stop + 1] != separator:
                break
            if pieces is None:
                pieces = []
            pieces.append(PyBytes_FromStringAndSize(<const char*> text + start, stop + 1 - start))
            start = stop + 2
            stop = start
        if pieces is None:
            items.append(stripped(text, start, stop))
        else:
            pieces.append(PyBytes_FromStringAndSize(<const char*> text + start, stop - start))
            piece = b"".join(pieces)
            items.append(stripped(<const unsigned char*> PyBytes_AS_STRING(piece), 0, PyBytes_GET_SIZE(piece)))
        at = stop + 1


def split_list(bytes text not None, separator=None):
    """The items of a list; a leading ``<c`` names the separator unless one is given (X-21, X-22)."""
    cdef Py_ssize_t at = 0
    cdef int octet
    if separator is None:
        octet = named_separator(<const unsigned char*> PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), &at)
    else:
        octet = separator
        if not 0 <= octet <= 255:
            raise ValueError("a separator is an octet")
    return split(text, at, octet)


def count_items(bytes text not None):
    """How many items a list has, as text: `listcount`."""
    cdef Py_ssize_t at = 0
    cdef int octet = named_separator(<const unsigned char*> PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), &at)
    return decimal(len(split(text, at, octet)))


cdef long long field_number(bytes text) except? -1:
    """The value of digits with a minus and white space around them; huge ones are as good as none."""
    cdef const unsigned char* source = <const unsigned char*> PyBytes_AS_STRING(text)
    cdef Py_ssize_t at = 0, end = PyBytes_GET_SIZE(text)
    cdef long long number = 0
    cdef bint negative
    while at < end and is_space(source[at]):
        at += 1
    while end > at and is_space(source[end - 1]):
        end -= 1
    end = min(end, at + 12)
    negative = at < end and source[at] == 45
    if negative:
        at += 1
    while at < end:
        if not 48 <= source[at] <= 57:
            raise ValueError("not a number")
        number = number * 10 + (source[at] - 48)
        at += 1
    return -number if negative else number


def extract_number(bytes field not None, bytes separators not None, bytes text not None):
    """The field of `text` with that number, counted from the right when negative; 0 is all of it."""
    cdef long long number = field_number(field)
    cdef unsigned char[256] separates
    cdef const unsigned char* source = <const unsigned char*> PyBytes_AS_STRING(text)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text), at, start = 0, end = size
    cdef long long left
    cdef unsigned char octet
    if number == 0:
        return text
    if PyBytes_GET_SIZE(separators) == 0:
        return text if number == 1 or number == -1 else None
    memset(separates, 0, sizeof(separates))
    for octet in separators:
        separates[octet] = 1
    if number > 0:
        left = number - 1
        at = 0
        while left and at < size:
            if separates[source[at]]:
                left -= 1
                start = at + 1
            at += 1
        if left:
            return None
        end = start
        while end < size and not separates[source[end]]:
            end += 1
    else:
        left = -number - 1
        at = size
        while left and at > 0:
            at -= 1
            if separates[source[at]]:
                left -= 1
                end = at
        if left:
            return None
        start = end
        while start > 0 and not separates[source[start - 1]]:
            start -= 1
    if end - start == size:
        return text
    return PyBytes_FromStringAndSize(<const char*> source + start, end - start)


def extract_key(bytes key not None, bytes text not None):
    """The value of the first ``key=value`` in `text` with that key, whatever the case of its letters.

    Raises:
        ExpandError: the key is empty.
    """
    cdef bytes wanted = lower(key.strip(b" \t\n\r\v\f"))
    cdef const unsigned char* name = <const unsigned char*> PyBytes_AS_STRING(wanted)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(wanted)
    cdef const unsigned char* source = <const unsigned char*> PyBytes_AS_STRING(text)
    cdef Py_ssize_t end = PyBytes_GET_SIZE(text), at = 0, start, place, last
    cdef bint found, escaped
    if length == 0:
        raise ExpandError('first argument of "extract" must not be empty')
    while True:
        while at < end and is_space(source[at]):
            at += 1
        if at == end:
            return None
        start = at
        while at < end and source[at] != 61 and not is_space(source[at]):
            at += 1
        found = at - start == length
        if found:
            for place in range(length):
                if lowered(source[start + place]) != name[place]:
                    found = False
                    break
        while at < end and is_space(source[at]):
            at += 1
        if at < end and source[at] == 61:
            at += 1
            while at < end and is_space(source[at]):
                at += 1
        start = at
        escaped = False
        if at < end and source[at] == 34:
            at += 1
            start = at
            while at < end and source[at] != 34:
                if source[at] == 92:
                    if at + 1 == end:
                        break
                    escaped = True
                    at += 1
                at += 1
            last = at
            if at < end and source[at] == 34:
                at += 1
        else:
            while at < end and not is_space(source[at]):
                at += 1
            last = at
        if found:
            value = PyBytes_FromStringAndSize(<const char*> source + start, last - start)
            return hooks.unescape(value) if escaped else value


def list_extract(bytes number not None, bytes text not None):
    """The item of a list with that number, counted from the right when negative.

    Raises:
        ExpandError: the number is none.
    """
    cdef Py_ssize_t at = 0
    cdef int octet
    cdef long long wanted
    cdef list found
    if not number.isdigit():
        hooks.check_number(number)
    wanted = field_number(number)
    octet = named_separator(<const unsigned char*> PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), &at)
    found = split(text, at, octet)
    if wanted < 0:
        wanted += len(found) + 1
    return found[wanted - 1] if 1 <= wanted <= len(found) else None


def time_interval(bytes text not None):
    """Seconds as weeks, days, hours, minutes and seconds; what is not plain digits is for Python."""
    cdef const unsigned char* source = <const unsigned char*> PyBytes_AS_STRING(text)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text), at
    cdef unsigned long long seconds = 0, count
    cdef int place
    cdef bytes out = b""
    if not 0 < size < 19:
        return hooks.time_interval(text)
    for at in range(size):
        if not 48 <= source[at] <= 57:
            return hooks.time_interval(text)
        seconds = seconds * 10 + (source[at] - 48)
    for place in range(5):
        count = seconds // UNIT_SECONDS[place]
        if count:
            out += decimal(count) + UNIT_LETTERS[place:place + 1]
            seconds -= count * UNIT_SECONDS[place]
    return out or b"0s"


cdef unsigned long long* UNIT_SECONDS = [604800, 86400, 3600, 60, 1]
cdef const char* UNIT_LETTERS = b"wdhms"


def join_list(list items not None, int separator):
    """A list as text (X-23): separators doubled, a space before a later item that is empty or begins with one."""
    if not 0 <= separator <= 255:
        raise ValueError("a separator is an octet")
    cdef const unsigned char* text
    cdef Py_ssize_t size = 0, length, at
    cdef bytes item
    cdef bint first = True
    for item in items:
        text = <const unsigned char*> PyBytes_AS_STRING(octets(item))
        length = PyBytes_GET_SIZE(item)
        size += length
        if not first:
            size += 2 if length == 0 or text[0] == separator else 1
        first = False
        for at in range(length):
            size += text[at] == separator
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    cdef unsigned char* out = <unsigned char*> PyBytes_AS_STRING(result)
    first = True
    for item in items:
        text = <const unsigned char*> PyBytes_AS_STRING(item)
        length = PyBytes_GET_SIZE(item)
        if not first:
            out[0] = separator
            out += 1
            if length == 0 or text[0] == separator:
                out[0] = 32
                out += 1
        first = False
        for at in range(length):
            if text[at] == separator:
                out[0] = separator
                out += 1
            out[0] = text[at]
            out += 1
    return result


cdef class Code:
    """A program for the evaluator.  Immutable; one may run in many threads at once.

    Args:
        instructions: numbers, five an instruction.
        constants: what operands below 0 mean, and names and functions.
        pool: operand lists of the instructions that take many.
        slot_count: how many slots a run needs.
        wraps: ``(first, last, before, after)``: an error between the instructions gets text around its message;
            inner ones first.  `before` None: the message becomes `after`.
        constant: the value, when it is always the same.
        options: what text is compiled with that turns out to be code.

    Raises:
        ValueError: an operand or a target is out of range.
    """

    cdef int* _code
    cdef int* _pool
    cdef int _size
    cdef int _pool_size
    cdef int _slots
    cdef tuple _constants
    cdef tuple _wraps
    cdef object _options
    cdef readonly object constant

    def __cinit__(self, instructions, tuple constants not None, pool, int slot_count, tuple wraps not None,
                  constant=None, options=None):
        cdef int at
        self._code = NULL
        self._pool = NULL
        instructions = tuple(instructions)
        pool = tuple(pool)
        if len(instructions) % 5 or len(instructions) > 1 << 24 or len(pool) > 1 << 24:
            raise ValueError("not a program")
        if not 1 <= slot_count <= 1 << 20:
            raise ValueError("not a program")
        if constant is not None and type(constant) is not bytes:
            raise TypeError("a constant is octets")
        self._size = len(instructions) // 5
        self._pool_size = len(pool)
        self._slots = slot_count
        self._constants = constants
        self._wraps = wraps
        self._options = options
        self.constant = constant
        self._code = <int*> PyMem_Malloc(max(len(instructions), 1) * sizeof(int))
        self._pool = <int*> PyMem_Malloc(max(len(pool), 1) * sizeof(int))
        if self._code == NULL or self._pool == NULL:
            raise MemoryError
        for at in range(self._size * 5):
            self._code[at] = instructions[at]
        for at in range(self._pool_size):
            self._pool[at] = pool[at]
            self._check_operand(self._pool[at])
        for at in range(self._size):
            self._check(at)
        if not self._size or self._code[(self._size - 1) * 5] not in _LAST:
            raise ValueError("the program has no end")

    def __dealloc__(self):
        PyMem_Free(self._code)
        PyMem_Free(self._pool)

    cdef int _check_operand(self, long long operand) except -1:
        if operand >= self._slots or -operand - 1 >= len(self._constants):
            raise ValueError("operand out of range")
        return 0

    cdef int _check(self, int index) except -1:
        """See that what follows an instruction is what the table says, and that each loop goes through one that is
        counted: a jump, or the next item of a list."""
        cdef const int* instruction = self._code + index * 5
        kinds = _OPERANDS.get(instruction[0])
        cdef int place = 1
        cdef long long value, target
        if kinds is None:
            raise ValueError("unknown instruction")
        for kind in kinds:
            value = instruction[place]
            if kind == "O":
                self._check_operand(value)
            elif kind == "L":
                if value < 0 or instruction[place + 1] < 0 or value + instruction[place + 1] > self._pool_size:
                    raise ValueError("list of operands out of range")
                place += 1
            elif (value < 0 or (kind in "SR" and value >= self._slots) or (kind == "W" and value + 1 >= self._slots)
                    or (kind == "K" and value >= len(self._constants)) or (kind == "T" and value >= self._size)
                    or (kind == "J" and value >> 1 >= self._size) or (kind == "C" and value > NUM_GE)):
                raise ValueError("operand out of range")
            elif kind in "TJ" and instruction[0] != JUMP:
                target = value if kind == "T" else value >> 1
                if target <= index and self._code[target * 5] != NEXT:
                    raise ValueError("a loop that is not counted")
            place += 1
        return 0

    def evaluate(self, State state not None):
        """The value, `Tainted` when text from outside is in it.

        Raises:
            ExpandError: with Exim's text; ForcedFailure and LookupDeferral tell those two apart.
        """
        if self.constant is not None:
            return self.constant
        cdef int mark = 0
        result = run(self, state, &mark)
        return result if mark == CLEAN else marked(result, mark)


cdef object run(Code code, State state, int* result_mark):
    """One evaluation that begins with what the state has."""
    cdef Frame frame = new_frame(code)
    take_value(frame, state.value)
    frame.item_mark = CLEAN
    frame.item = state.item
    if frame.item is not None:
        frame.item_mark = mark_of(frame.item)
        frame.item = plain(frame.item)
    take_groups(frame, state.groups)
    if state.depth == 0:
        state.steps = STEP_LIMIT
        state.octets = OCTET_LIMIT
    return deeper(code, frame, state, result_mark)


cdef object nested(Code code, Frame outer, State state, int* result_mark):
    """Run `code` with the `$value`, `$item` and `$n` of `outer`."""
    cdef Frame frame = new_frame(code)
    spend(state, 100, 0)
    frame.value = outer.value
    frame.value_mark = outer.value_mark
    frame.item = outer.item
    frame.item_mark = outer.item_mark
    frame.groups = outer.groups
    frame.groups_mark = outer.groups_mark
    return deeper(code, frame, state, result_mark)


cdef Frame new_frame(Code code):
    cdef Frame frame = Frame.__new__(Frame)
    frame.slots = [None] * code._slots
    if code._slots <= 32:
        frame.marks = frame.few
    else:
        frame.marks = <int*> PyMem_Malloc(code._slots * sizeof(int))
        if frame.marks == NULL:
            raise MemoryError
    # a slot may be read that was never written: its mark must be one that exists
    memset(frame.marks, 0, code._slots * sizeof(int))
    return frame


cdef object deeper(Code code, Frame frame, State state, int* result_mark):
    if state.depth >= NESTING_LIMIT:
        raise ExpandError("expansion is nested too deep")
    state.depth += 1
    try:
        return execute(code, frame, state, result_mark)
    finally:
        state.depth -= 1


cdef inline int take_value(Frame frame, object value) except -1:
    frame.value = value
    frame.value_mark = CLEAN
    if value is not None:
        frame.value_mark = mark_of(value)
        frame.value = plain(value)
    return 0


cdef int take_groups(Frame frame, tuple groups) except -1:
    frame.groups = groups
    frame.groups_mark = CLEAN
    if groups is None:
        raise TypeError("groups are a tuple")
    if not groups:
        return 0
    cdef object group
    cdef int first = mark_of(groups[0])
    for group in groups:
        if mark_of(group) != first:
            # each keeps its own mark on it
            frame.groups_mark = MIXED
            return 0
    frame.groups_mark = first
    if first:
        frame.groups = tuple([plain(group) for group in groups])
    return 0


cdef int hand_over(Frame frame, State state) except -1:
    state.value = None if frame.value is None else marked(frame.value, frame.value_mark)
    state.item = None if frame.item is None else marked(frame.item, frame.item_mark)
    if frame.groups_mark > CLEAN:
        state.groups = tuple([marked(group, frame.groups_mark) for group in frame.groups])
    else:
        state.groups = frame.groups
    return 0


cdef inline int examine(State state, object value, int speed=3) except -1:
    """Take from the budget what it costs to look at a value from one end to the other.

    `speed`: 3 for what is done here, 0 for what is done in Python.
    """
    if PyBytes_CheckExact(value):
        state.steps -= PyBytes_GET_SIZE(value) >> speed
        if state.steps < 0:
            raise ExpandError("expansion takes too long")
    return 0


cdef inline int spend(State state, long long steps, long long octets) except -1:
    """Take from the budget: steps, and octets that are made."""
    state.steps -= steps
    state.octets -= octets
    if state.steps < 0:
        raise ExpandError("expansion takes too long")
    if state.octets < 0:
        raise ExpandError("expansion is too large")
    return 0


cdef object wrapped(Code code, int at, object error):
    """The error with the texts around its message that belong to instruction `at`."""
    cdef bint changed = False
    message = error.message
    for first, last, before, after in code._wraps:
        if first <= at < last:
            message = after if before is None else before + message + after
            changed = True
    if changed:
        error.message = message
        error.args = (message,)
    return error


@cython.boundscheck(False)  # operands come from a checked Code
cdef inline object fetch(Code code, list slots, int operand):
    if operand >= 0:
        return slots[operand]
    return code._constants[~operand]


cdef inline tuple row_of(object constant, Py_ssize_t least):
    """A constant that is a tuple of `least` members or more, which then may be taken without looking."""
    if type(constant) is not tuple or len(<tuple> constant) < least:
        raise TypeError("not a constant of this instruction")
    return <tuple> constant


cdef inline int mark_at(Frame frame, int operand) noexcept:
    return frame.marks[operand] if operand >= 0 else CLEAN


cdef object execute(Code code, Frame frame, State state, int* result_mark):
    cdef int at = 0
    try:
        return steps_from(code, frame, state, &at, result_mark)
    except ExpandError as error:
        wrapped(code, at, error)
        raise


@cython.boundscheck(False)  # operands and lists of operands come from a checked Code
cdef object join(Code code, Frame frame, State state, int first, int count, int* mark):
    """The octets of `count` operands one after the other."""
    cdef Py_ssize_t size = 0
    cdef int at, operand
    cdef PyObject* part
    cdef int total = CLEAN
    for at in range(first, first + count):
        operand = code._pool[at]
        part = PyList_GET_ITEM(frame.slots, operand) if operand >= 0 else PyTuple_GET_ITEM(code._constants, ~operand)
        if not PyBytes_CheckExact(<object> part):
            raise TypeError("a part is not octets")
        size += PyBytes_GET_SIZE(<object> part)
        if operand >= 0 and frame.marks[operand] and PyBytes_GET_SIZE(<object> part):
            total = join_marks(total, frame.marks[operand])
    spend(state, 0, size)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    cdef char* out = PyBytes_AS_STRING(result)
    for at in range(first, first + count):
        operand = code._pool[at]
        part = PyList_GET_ITEM(frame.slots, operand) if operand >= 0 else PyTuple_GET_ITEM(code._constants, ~operand)
        size = PyBytes_GET_SIZE(<object> part)
        memcpy(out, PyBytes_AS_STRING(<object> part), size)
        out += size
    mark[0] = total
    return result


cdef list gather(Code code, Frame frame, State state, int first, int count, bint with_marks, int* mark):
    """Operands as a list of Python values; `with_marks`: tainted ones as `Tainted`."""
    cdef list values = []
    cdef int at, operand, one
    cdef int total = CLEAN
    spend(state, CALL_STEPS, 0)
    for at in range(first, first + count):
        operand = code._pool[at]
        value = fetch(code, frame.slots, operand)
        examine(state, value, 0)
        one = mark_at(frame, operand)
        if one:
            total = TAINTED
            if with_marks:
                value = marked(value, one)
        values.append(value)
    mark[0] = total
    return values


cdef object seam(Code code, Frame frame, State state, object function, int first, int count):
    """Call `function(state, *operands)`; it sees and may change `$value`, `$item` and `$n` on the state."""
    cdef int mark = 0
    cdef list values = gather(code, frame, state, first, count, True, &mark)
    cdef object value = state.value
    cdef object item = state.item
    cdef tuple groups = state.groups
    cdef tuple given
    hand_over(frame, state)
    given = state.groups
    spend(state, 100, 0)
    try:
        result = function(state, *values)
        take_value(frame, state.value)
        if state.groups is not given:
            take_groups(frame, state.groups)
        return result
    finally:
        state.value = value
        state.item = item
        state.groups = groups


cdef int match(Frame frame, State state, object subject, int subject_mark, object pattern) except -1:
    # a constant pattern was compiled with the program
    cdef Regex regex = hooks.compile_regex(pattern) if PyBytes_CheckExact(pattern) else pattern
    cdef bytes text = octets(subject)
    spend(state, 1000, 0)
    examine(state, text)
    if regex is None:
        raise TypeError("a pattern is needed")
    data = regex._matched(text, 0, 0)
    if data is None:
        return 0
    frame.groups = regex._all(data, text)
    frame.groups_mark = part_mark(subject_mark)
    return 1


cdef int inlist(Frame frame, State state, object subject, object members, int mark, bint caseless) except -1:
    cdef bytes one = octets(subject)
    cdef bytes item
    cdef Py_ssize_t at = 0
    cdef int separator
    cdef bytes text
    if PyBytes_CheckExact(members):
        text = <bytes> members
        examine(state, text)
        separator = named_separator(<const unsigned char*> PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), &at)
        items = split(text, at, separator)
    else:
        # a constant list was taken apart with the program
        items = members
    for each in items:
        item = octets(each)
        if PyBytes_GET_SIZE(item) == PyBytes_GET_SIZE(one) and order(one, item, caseless) == 0:
            frame.value = item
            frame.value_mark = part_mark(mark)
            return 1
    spend(state, len(items), 0)
    return 0


cdef int match_list(Frame frame, State state, object subject, int subject_mark, object table) except -1:
    """Whether a subject is in a list of plain names and tails; see conditions.plain_list.

    `table`: (whether the subjects are addresses, whether to set groups, rows); a row: local part or None, whether that
    is a tail; domain or whole, whether that is a tail; what `$value` becomes.
    """
    cdef bint addresses = (<tuple?> table)[0]
    cdef bint groups = (<tuple> table)[1]
    cdef tuple rows = (<tuple> table)[2]
    cdef tuple row
    cdef bytes folded = lower(octets(subject))
    cdef bytes shown
    cdef const char* text = PyBytes_AS_STRING(folded)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(folded)
    cdef Py_ssize_t at = -1
    spend(state, CALL_STEPS + len(rows), 0)
    examine(state, folded)
    frame.value = None
    frame.value_mark = CLEAN
    if addresses:
        at = size - 1
        while at >= 0 and text[at] != 64:
            at -= 1
        if at < 0:
            return 0
    for row in rows:
        if row[0] is not None and not fits(text, at, row[0], row[1]):
            continue
        if not fits(text + at + 1, size - at - 1, row[2], row[3]):
            continue
        shown = row[4]
        frame.value = None if shown is None else octets(shown)
        if groups:
            if row[3]:
                # the part that the asterisk stands for
                frame.groups = (folded, folded[:size - PyBytes_GET_SIZE(octets(row[2]))])
            else:
                frame.groups = (folded,)
            frame.groups_mark = part_mark(subject_mark)
        return 1
    return 0


cdef inline bint fits(const char* text, Py_ssize_t size, object wanted, object tail) except -1:
    """Whether text in lower case is what is wanted, or ends so."""
    cdef bytes name = octets(wanted)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(name)
    if length > size or (length != size and tail is not True):
        return False
    return memcmp(text + size - length, PyBytes_AS_STRING(name), length) == 0


cdef bytes cut(bytes text, object place):
    """A part of a text: engine.expand.pieces.substr."""
    cdef long long start = (<tuple?> place)[0]
    cdef long long length = (<tuple> place)[1]
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    if start < 0:
        start += size
        if start < 0:
            length = max(length + start, 0)
            start = 0
        elif length < 0:
            length = start
            start = 0
    elif start > size:
        return b""
    elif length < 0:
        length = size
    length = min(length, size - start)
    if length <= 0:
        return b""
    if length == size:
        return text
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(text) + start, length)


cdef object substitute(Code code, Frame frame, State state, object subject, object pattern, object replacement,
                       int* mark):
    """`sg`: like Perl's s///g; the replacement is expanded for each match with `$0`, `$1` …"""
    # constant pattern and replacement were compiled with the program
    cdef Regex regex = hooks.compile_regex(pattern) if PyBytes_CheckExact(pattern) else pattern
    cdef int subject_mark = part_mark(mark[0])
    cdef tuple groups = frame.groups
    cdef int groups_mark = frame.groups_mark
    cdef list out = []
    cdef Py_ssize_t at = 0, start, end
    cdef bytes text = octets(subject)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    cdef bint after_empty = False
    cdef int piece_mark
    cdef Code program = replacement if isinstance(replacement, Code) else None
    cdef object data
    if regex is None:
        raise TypeError("a pattern is needed")
    mark[0] = subject_mark
    examine(state, text)
    while at <= size:
        spend(state, 200, 0)
        # PCRE2_ANCHORED | PCRE2_NOTEMPTY, as in Regex.span
        data = regex._matched(text, at, <unsigned int> 0x80000004 if after_empty else 0)
        if data is None:
            if not after_empty or at >= size:
                break
            # nothing but the empty match here: one octet goes over as it is
            out.append(text[at:at + 1])
            at += 1
            after_empty = False
            continue
        start, end = hooks.regex_span(data, text, 0)
        if not at <= start <= end <= size:
            raise ValueError("a match outside its subject")
        if start > at:
            out.append(text[at:start])
        if program is None:
            program = hooks.compile_text(replacement, code._options)
        if program.constant is not None:
            piece = program.constant
        else:
            frame.groups = regex._all(data, text)
            frame.groups_mark = subject_mark
            piece_mark = CLEAN
            piece = nested(program, frame, state, &piece_mark)
            mark[0] = join_marks(mark[0], piece_mark)
        mark[0] = part_mark(mark[0])
        out.append(piece)
        spend(state, 1, len(piece))
        after_empty = start == end
        at = end
        if after_empty and at >= size:
            break
    frame.groups = groups
    frame.groups_mark = groups_mark
    if not out:
        return text
    if at < size:
        out.append(text[at:])
    return b"".join(out)


cdef list first_of_each(list pairs):
    """The items of a list that was sorted, without their keys."""
    cdef list items = []
    cdef tuple pair
    for pair in pairs:
        items.append(pair[0])
    return items


cdef object sort_add(State state, list pairs, object item, bytes key, int kind):
    """Put an item where the comparator wants it: before the first one it comes before."""
    cdef Py_ssize_t at
    cdef tuple pair
    cdef object sortable = key
    if kind >= NUM_EQ:
        try:
            sortable = number_of(key)
        except ExpandError:
            sortable = None  # what is no number comes before nothing, and nothing before it
    examine(state, key)
    if sortable is not None:
        for at in range(len(pairs)):
            pair = pairs[at]
            spend(state, 1, 0)
            if pair[1] is not None and compare(kind, sortable, pair[1]):
                pairs.insert(at, (item, sortable))
                return None
    pairs.append((item, sortable))
    return None


cdef object second_expansion(Code code, Frame frame, State state, object text, int mark, bint operator,
                             int* result_mark):
    """`${expand:…}`, and the list of `inlist`, which Exim expands twice."""
    if b"$" not in text and b"\\" not in text:
        result_mark[0] = mark
        return text
    if mark and not operator:
        result_mark[0] = mark
        return text
    shown = (<bytes?> text).decode("utf-8", "surrogateescape")
    if mark:
        raise ExpandError(f"attempt to expand tainted string '{shown}'")
    try:
        return nested(hooks.compile_text(text, code._options), frame, state, result_mark)
    except ExpandError as error:
        if operator:
            error.message = f'internal expansion of "{shown}" failed: {error.message}'
            error.args = (error.message,)
        raise


cdef object quote(State state, tuple quoter, object value):
    """Text through a quoter, unless no octet of it can change."""
    cdef bytes text = octets(value)
    cdef bytes changing = octets(quoter[1])
    cdef const unsigned char* table = <const unsigned char*> PyBytes_AS_STRING(changing)
    cdef const unsigned char* source = <const unsigned char*> PyBytes_AS_STRING(text)
    cdef Py_ssize_t at
    cdef bytes around = octets(quoter[4])
    if PyBytes_GET_SIZE(changing) != 256:
        raise ValueError("a quoter's table has 256 octets")
    examine(state, text)
    if PyBytes_GET_SIZE(text) == 0:
        return quoter[0](text) if quoter[3] is None else around + around
    for at in range(PyBytes_GET_SIZE(text)):
        if table[source[at]]:
            break
    else:
        return text
    if quoter[3] is None:
        spend(state, CALL_STEPS, 0)
        examine(state, text, 0)
        value = quoter[0](text)
    else:
        value = replaced(text, table, quoter[3])
        if PyBytes_GET_SIZE(around):
            value = around + value + around
    spend(state, 0, len(value))
    return value


cdef bytes replaced(bytes text, const unsigned char* table, tuple replacements):
    """The text with each octet that the table marks replaced by what is in its place."""
    cdef const unsigned char* source = <const unsigned char*> PyBytes_AS_STRING(text)
    cdef Py_ssize_t size = 0, at
    cdef bytes other
    if len(replacements) != 256:
        raise ValueError("there are 256 replacements")
    for at in range(PyBytes_GET_SIZE(text)):
        size += PyBytes_GET_SIZE(octets(replacements[source[at]])) if table[source[at]] else 1
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    cdef char* out = PyBytes_AS_STRING(result)
    for at in range(PyBytes_GET_SIZE(text)):
        if table[source[at]]:
            other = octets(replacements[source[at]])
            memcpy(out, PyBytes_AS_STRING(other), PyBytes_GET_SIZE(other))
            out += PyBytes_GET_SIZE(other)
        else:
            out[0] = source[at]
            out += 1
    return result


cdef object hot(int which, bytes text):
    """The operators that are done here."""
    if which == 1:
        return lower(text)
    if which == 2:
        return upper(text)
    if which == 3:
        return decimal(PyBytes_GET_SIZE(text))
    if which >= 6:
        return decimal(arithmetic(text, which == 7))
    return address_part(text, which == 4)


cdef int split_into(Frame frame, State state, int a, object text, int mark, int kind) except -1:
    """Items and separator of a list into slots `a` and `a + 1`.

    `kind`: 0 a list; 1 a list whose separator stands in the source (X-21); 2 an array of JSON, 3 one of strings.
    """
    cdef bytes source
    cdef Py_ssize_t at = 0
    cdef int separator = 58
    if type(text) is tuple:
        # a constant list was taken apart with the program
        items, separator = text
        frame.slots[a] = iter(<tuple?> items)
        frame.slots[a + 1] = separator
        frame.marks[a] = CLEAN
        frame.marks[a + 1] = CLEAN
        return 0
    source = octets(text)
    examine(state, source)
    if kind >= 2:
        items = hooks.split_json(source, kind == 3)
    else:
        if kind == 1 or not mark:
            separator = named_separator(<const unsigned char*> PyBytes_AS_STRING(source), PyBytes_GET_SIZE(source), &at)
        items = split(source, at, separator)
    frame.slots[a] = iter(items)
    frame.slots[a + 1] = separator
    frame.marks[a] = part_mark(mark)
    frame.marks[a + 1] = CLEAN
    return 0


@cython.boundscheck(False)  # operands come from a checked Code
cdef object steps_from(Code code, Frame frame, State state, int* place, int* result_mark):
    """Run instructions until RETURN.  `place` tells which one an error came from."""
    cdef list slots = frame.slots
    cdef int* marks = frame.marks
    cdef tuple constants = code._constants
    cdef const int* now
    cdef int at = 0
    cdef int what, a, b, c, d, mark, answer
    cdef PyObject* found
    cdef object value
    cdef tuple row
    cdef list items
    while True:
        place[0] = at
        now = code._code + at * 5
        what = now[0]
        a = now[1]
        b = now[2]
        c = now[3]
        d = now[4]
        at += 1
        if what == VAR:
            # b: constant with the name, c: mark, d: constant with the value of a variable that is not there
            if PyDict_CheckExact(state.variables):
                found = PyDict_GetItem(state.variables, constants[b])
                value = None if found == NULL else <object> found
            else:
                value = state.variables.get(constants[b])
            mark = CLEAN
            if PyBytes_CheckExact(value):
                mark = TAINTED if c else CLEAN
            elif value is None:
                value = constants[d]
            else:
                value = hooks.convert(value)
                mark = mark_of(value)
                value = plain(value)
                if mark == CLEAN and c:
                    mark = TAINTED
            slots[a] = value
            marks[a] = mark
        elif what == COMPARE:
            # kind, two operands, target with the wanted answer in bit 0
            answer = compare(a, fetch(code, slots, b), fetch(code, slots, c))
            if answer == (d & 1):
                at = d >> 1
        elif what == HOT:
            value = octets(fetch(code, slots, c))
            examine(state, value)
            slots[a] = hot(b, value)
            marks[a] = CLEAN if b == 3 or b >= 6 or not mark_at(frame, c) else TAINTED
        elif what == JOIN:
            mark = CLEAN
            slots[a] = join(code, frame, state, b, c, &mark)
            marks[a] = mark
        elif what == RETURN:
            result_mark[0] = mark_at(frame, a)
            value = fetch(code, slots, a)
            if not PyBytes_CheckExact(value):
                raise TypeError("the result is not octets")
            return value
        elif what == MOVE:
            slots[a] = fetch(code, slots, b)
            marks[a] = mark_at(frame, b)
        elif what == QUOTE:
            # b: constant with the quoter, its table and the mark of what it made safe; c: operand
            row = row_of(constants[b], 5)
            mark = mark_at(frame, c)
            slots[a] = quote(state, row, fetch(code, slots, c))
            marks[a] = <int> row[2] if mark else CLEAN
        elif what == JUMP:
            if a < at:
                spend(state, 1, 0)
            at = a
        elif what == JUMP_NONE:
            if fetch(code, slots, a) is None:
                at = b
        elif what == JUMP_EMPTY:
            # c: 1 to jump when it is empty, 0 when it is not
            answer = len(fetch(code, slots, a)) == 0
            if answer == c:
                at = b
        elif what == VALUE:
            slots[a] = b"" if frame.value is None else frame.value
            marks[a] = frame.value_mark
        elif what == ITEM:
            slots[a] = b"" if frame.item is None else frame.item
            marks[a] = frame.item_mark
        elif what == GROUP:
            if b < len(frame.groups):
                value = frame.groups[b]
                marks[a] = mark_of(value) if frame.groups_mark == MIXED else frame.groups_mark
                slots[a] = plain(value)
            else:
                slots[a] = b""
                marks[a] = CLEAN
        elif what == APPLY:
            # b: constant with the operator's function and how to call it, c: operand, d: the result is clean
            row = row_of(constants[b], 2)
            mark = mark_at(frame, c)
            value = fetch(code, slots, c)
            spend(state, CALL_STEPS, 0)
            examine(state, value, 0)
            if row[1] == 0:
                value = row[0](value)
            elif len(row) < 3:
                raise TypeError("not a constant of this instruction")
            elif row[1] == 1:
                value = row[0](value, row[2])
            else:
                value = row[0](value, row[2], state)
            spend(state, 1, len(value))
            slots[a] = value
            marks[a] = CLEAN if d or not mark else TAINTED
        elif what == CALL:
            # b: constant with (function, the result is clean), c and d: operand list
            row = row_of(constants[b], 2)
            mark = CLEAN
            value = row[0](*gather(code, frame, state, c, d, False, &mark))
            if value is not None:
                spend(state, 1, len(value))
            slots[a] = value
            marks[a] = CLEAN if row[1] else part_mark(mark)
        elif what == SEAM:
            value = seam(code, frame, state, constants[b], c, d)
            marks[a] = CLEAN if value is None else mark_of(value)
            slots[a] = plain(value)
        elif what == VAR_OTHER:
            # b: constant with (name, source)
            spend(state, CALL_STEPS, 0)
            value = hooks.variable(state, constants[b])
            marks[a] = mark_of(value)
            slots[a] = plain(value)
        elif what == NUMBER:
            value = fetch(code, slots, b)
            spend(state, CALL_STEPS, 0)
            slots[a] = number_of(value)
            marks[a] = CLEAN
        elif what == TEST:
            # a: constant with the function, b and c: operand list
            mark = CLEAN
            value = gather(code, frame, state, b, c, False, &mark)
            answer = 1 if constants[a](*value) else 0
            if answer == (d & 1):
                at = d >> 1
        elif what == SEAM_TEST:
            answer = 1 if seam(code, frame, state, constants[a], b, c) else 0
            if answer == (d & 1):
                at = d >> 1
        elif what == MATCH:
            answer = match(frame, state, fetch(code, slots, a), mark_at(frame, a), fetch(code, slots, b))
            if answer == (d & 1):
                at = d >> 1
        elif what == MATCH_LIST:
            # a: constant with the list, b: operand
            answer = match_list(frame, state, fetch(code, slots, b), mark_at(frame, b), constants[a])
            if answer == (d & 1):
                at = d >> 1
        elif what == CUT:
            # b: operand, c: constant with start and length
            value = octets(fetch(code, slots, b))
            value = cut(value, constants[c])
            spend(state, 1, PyBytes_GET_SIZE(value))
            slots[a] = value
            marks[a] = part_mark(mark_at(frame, b))
        elif what == INLIST:
            answer = inlist(frame, state, fetch(code, slots, a), fetch(code, slots, b), mark_at(frame, b), c)
            if answer == (d & 1):
                at = d >> 1
        elif what == SET_VALUE:
            value = fetch(code, slots, a)
            frame.value = value if value is None else octets(value)
            frame.value_mark = mark_at(frame, a)
        elif what == SAVE_VALUE:
            slots[a] = frame.value
            marks[a] = frame.value_mark
        elif what == SET_ITEM:
            value = fetch(code, slots, a)
            frame.item = value if value is None else octets(value)
            frame.item_mark = mark_at(frame, a)
        elif what == SAVE_ITEM:
            slots[a] = frame.item
            marks[a] = frame.item_mark
        elif what == SET_GROUPS:
            value = slots[a]
            if not isinstance(value, tuple):
                raise TypeError("groups are a tuple")
            frame.groups = <tuple> value
            frame.groups_mark = marks[a]
        elif what == SAVE_GROUPS:
            slots[a] = frame.groups
            marks[a] = frame.groups_mark
        elif what == SPLIT:
            # b: operand, c: kind
            split_into(frame, state, a, fetch(code, slots, b), mark_at(frame, b), c)
        elif what == NEXT:
            # b: slot of the list, c: target at its end
            spend(state, 1, 0)
            value = next(slots[b], None)
            if value is None:
                at = c
            else:
                slots[a] = value
                marks[a] = marks[b]
        elif what == NEW_LIST:
            slots[a] = []
            marks[a] = CLEAN
        elif what == ADD:
            items = slots[a]
            value = fetch(code, slots, b)
            items.append(value)
            marks[a] = join_marks(marks[a], mark_at(frame, b))
            spend(state, 1, len(value) + 16)
        elif what == JOIN_LIST:
            # b: slot with the list, c: slot with the separator, d: the list has pairs
            items = slots[b]
            if d:
                items = first_of_each(items)
            value = join_list(items, slots[c])
            spend(state, 1, len(value))
            slots[a] = value
            marks[a] = part_mark(marks[b])
        elif what == SORT_ADD:
            # a: slot with the list, b: item, c: key, d: comparator
            items = slots[a]
            sort_add(state, items, fetch(code, slots, b), octets(fetch(code, slots, c)), d)
            marks[a] = join_marks(marks[a], mark_at(frame, b))
        elif what == EXPAND:
            # b: operand, c: 1 for the operator, 0 for a list
            mark = CLEAN
            value = second_expansion(code, frame, state, fetch(code, slots, b), mark_at(frame, b), c, &mark)
            slots[a] = value
            marks[a] = mark
        elif what == SUBSTITUTE:
            # b: subject, c: pattern, d: replacement
            mark = mark_at(frame, b)
            if mark_at(frame, d):
                value = fetch(code, slots, d)
                if b"$" in value or b"\\" in value:
                    raise ExpandError("attempt to expand tainted string '%s'"
                                      % (<bytes?> value).decode("utf-8", "surrogateescape"))
            value = substitute(code, frame, state, fetch(code, slots, b), fetch(code, slots, c),
                               fetch(code, slots, d), &mark)
            slots[a] = value
            marks[a] = part_mark(join_marks(mark, mark_at(frame, d)))
        elif what == FAIL:
            row = row_of(constants[a], 3)
            raise row[0](row[1], column=row[2])
        elif what == REFUSE_TAINTED:
            # a: operand, b: constant with what for
            if mark_at(frame, a):
                raise ExpandError("attempt to use tainted string '%s' for %s" % (
                    (<bytes?> fetch(code, slots, a)).decode("utf-8", "surrogateescape"), constants[b]))
        else:
            raise ValueError("unknown instruction")
