# cython: language_level=3, boundscheck=True, wraparound=False
"""Evaluate a compiled expansion over a flat array of slots.

Twin: tests/reference/expand_reference.py runs the same programs, slowly.
Input: a `Code` (numbers, constants, places where messages are wrapped) made by engine.expand.compiler, and a `State`.
Output: octets, or an ExpandError.  An instruction is five numbers: what, and four operands.  An operand from 0 up is a
slot, one below 0 is a constant (the constant at ~operand); targets of jumps are instruction numbers.
Bounds: slots live in a Python list (checked at every access); marks beside them are a C array of `slot_count` numbers,
indexed only by operands that `Code.__init__` has checked.  Loops, nested runs and octets made are counted against a
budget, so every evaluation ends.
No directive is turned off but wraparound; negative operands are resolved by hand.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_CheckExact, PyDict_GetItem
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.string cimport memcmp, memcpy

from engine.errors import ExpandError, ForcedFailure, LookupDeferral
from engine.expand.taint import Tainted

#: what one evaluation may cost, nested ones included
STEP_LIMIT = 1_000_000
OCTET_LIMIT = 64 << 20
NESTING_LIMIT = 40

cdef enum:
    CLEAN = 0
    TAINTED = 1
    FIRST_QUOTER = 2

#: mark -> lookup type whose quoting made the text safe
cdef list _quoters = [None, None]
cdef dict _quoter_marks = {}


def quoter_mark(str name):
    """The number that marks text quoted for the lookup type `name`."""
    mark = _quoter_marks.get(name)
    if mark is None:
        mark = len(_quoters)
        _quoters.append(name)
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
    cdef public object split
    cdef public object join_list
    cdef public object compile_regex
    cdef public object compile_text
    cdef public object address_part


hooks = Hooks()


cdef class Frame:
    """What one run of a program changes."""

    cdef list slots
    cdef int* marks
    cdef object value
    cdef object item
    cdef tuple groups
    cdef int value_mark
    cdef int item_mark
    cdef int groups_mark

    def __cinit__(self):
        self.marks = NULL

    def __dealloc__(self):
        PyMem_Free(self.marks)


cdef inline int join_marks(int first, int second) noexcept:
    if first == second or second == CLEAN:
        return first
    if first == CLEAN:
        return second
    return TAINTED


cdef inline int mark_of(object value) except -1:
    if type(value) is bytes:
        return CLEAN
    if isinstance(value, Tainted):
        quoter = value.quoter
        return TAINTED if quoter is None else quoter_mark(quoter)
    return CLEAN


cdef inline object plain(object value):
    """Octets without the mark they carry; the marks are beside the slots in here."""
    return bytes(value) if isinstance(value, Tainted) else value


cdef object marked(object value, int mark):
    """`value` as it may leave the evaluator: `Tainted` when it has a mark."""
    if mark == CLEAN:
        return value if type(value) is bytes else bytes(value)
    result = Tainted(value)
    if mark >= FIRST_QUOTER:
        result.quoter = _quoters[mark]
    return result


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
    return hooks.integer(value)


cdef int compare(int kind, object first, object second) except -1:
    cdef bytes one, two
    cdef long long left, right
    cdef int result
    if kind == EQ:
        one = first
        two = second
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
    result = order(first, second, kind == EQI or kind >= LTI)
    if kind == EQI:
        return result == 0
    if kind == LT or kind == LTI:
        return result < 0
    if kind == LE or kind == LEI:
        return result <= 0
    if kind == GT or kind == GTI:
        return result > 0
    return result >= 0


cdef class Code:
    """A program for the evaluator.  Immutable; one may run in many threads at once.

    Args:
        instructions: numbers, five an instruction.
        constants: what operands below 0 mean, and names and functions.
        pool: operand lists of the instructions that take many.
        slot_count: how many slots a run needs.
        wraps: ``(first, last, before, after)``: an error between the instructions gets text around its message;
            inner ones first.  `before` None: the message becomes `after`.

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

    def __cinit__(self):
        self._code = NULL
        self._pool = NULL

    def __init__(self, instructions, tuple constants, pool, int slot_count, tuple wraps, constant=None,
                 options=None):
        cdef int at
        if len(instructions) % 5 or slot_count < 1 or slot_count > 1 << 20:
            raise ValueError("not a program")
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
            self._check(self._code + at * 5)

    def __dealloc__(self):
        PyMem_Free(self._code)
        PyMem_Free(self._pool)

    cdef int _check_operand(self, int operand) except -1:
        if operand >= self._slots or ~operand >= len(self._constants):
            raise ValueError("operand out of range")
        return 0

    cdef int _check(self, const int* instruction) except -1:
        cdef int what = instruction[0]
        cdef int at
        if what < 0 or what > REFUSE_TAINTED:
            raise ValueError("unknown instruction")
        for at in range(1, 5):
            # numbers that are no operands (targets, kinds, counts) are checked by the list access at run time
            if instruction[at] < 0:
                self._check_operand(instruction[at])
        if what not in (RETURN, JUMP, JUMP_NONE, JUMP_EMPTY, COMPARE, TEST, SEAM_TEST, MATCH, INLIST, SET_VALUE, SET_ITEM,
                        SET_GROUPS, FAIL, REFUSE_TAINTED):
            if instruction[1] < 0 or instruction[1] + (what == SPLIT) >= self._slots:
                raise ValueError("slot out of range")
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
        return marked(result, mark)


cdef object run(Code code, State state, int* result_mark):
    """One evaluation, or one nested in another."""
    cdef Frame frame = Frame.__new__(Frame)
    cdef bint outermost = state.depth == 0
    frame.slots = [None] * code._slots
    frame.marks = <int*> PyMem_Malloc(code._slots * sizeof(int))
    if frame.marks == NULL:
        raise MemoryError
    frame.value_mark = frame.item_mark = CLEAN
    frame.value = state.value
    if frame.value is not None:
        frame.value_mark = mark_of(frame.value)
        frame.value = plain(frame.value)
    frame.item = state.item
    if frame.item is not None:
        frame.item_mark = mark_of(frame.item)
        frame.item = plain(frame.item)
    take_groups(frame, state.groups)
    if outermost:
        state.steps = STEP_LIMIT
        state.octets = OCTET_LIMIT
    elif state.depth >= NESTING_LIMIT:
        raise ExpandError("expansion is nested too deep")
    state.depth += 1
    try:
        return execute(code, frame, state, result_mark)
    finally:
        state.depth -= 1


cdef int take_groups(Frame frame, tuple groups) except -1:
    frame.groups = groups
    frame.groups_mark = CLEAN
    if not groups:
        return 0
    cdef object group
    for group in groups:
        frame.groups_mark = join_marks(frame.groups_mark, mark_of(group))
    if frame.groups_mark:
        frame.groups = tuple([plain(group) for group in groups])
    return 0


cdef object nested(Code code, Frame outer, State state, int* result_mark):
    """Run `code` with the `$value`, `$item` and `$n` of `outer`."""
    cdef object value = state.value
    cdef object item = state.item
    cdef tuple groups = state.groups
    hand_over(outer, state)
    spend(state, 20, 0)
    try:
        return run(code, state, result_mark)
    finally:
        state.value = value
        state.item = item
        state.groups = groups


cdef int hand_over(Frame frame, State state) except -1:
    state.value = None if frame.value is None else marked(frame.value, frame.value_mark)
    state.item = None if frame.item is None else marked(frame.item, frame.item_mark)
    if frame.groups_mark:
        state.groups = tuple([marked(group, frame.groups_mark) for group in frame.groups])
    else:
        state.groups = frame.groups
    return 0


cdef inline int spend(State state, long long steps, long long octets) except -1:
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
    if not changed:
        return error
    result = type(error)(message, column=error.column) if type(error) in (ExpandError, ForcedFailure) else error
    result.message = message
    result.args = (message,)
    return result


cdef inline object fetch(Code code, list slots, int operand):
    if operand >= 0:
        return slots[operand]
    return code._constants[~operand]


cdef inline int mark_at(Frame frame, int operand) noexcept:
    return frame.marks[operand] if operand >= 0 else CLEAN


cdef object execute(Code code, Frame frame, State state, int* result_mark):
    cdef int at = 0
    while True:
        try:
            return steps_from(code, frame, state, &at, result_mark)
        except (ExpandError, ForcedFailure, LookupDeferral) as error:
            changed = wrapped(code, at, error)
            if changed is error:
                raise
            raise changed from None


cdef object join(Code code, Frame frame, State state, int first, int count, int* mark):
    """The octets of `count` operands one after the other."""
    cdef Py_ssize_t size = 0
    cdef int at, operand
    cdef PyObject* part
    cdef int total = CLEAN
    if first < 0 or count < 0 or first + count > code._pool_size:
        raise ValueError("operand list out of range")
    for at in range(first, first + count):
        operand = code._pool[at]
        part = PyList_GET_ITEM(frame.slots, operand) if operand >= 0 else PyTuple_GET_ITEM(code._constants, ~operand)
        if not isinstance(<object> part, bytes):
            raise TypeError("a part is not octets")
        size += PyBytes_GET_SIZE(<object> part)
        if operand >= 0 and PyBytes_GET_SIZE(<object> part):
            total = join_marks(total, frame.marks[operand])
    if size > state.octets:
        raise ExpandError("expansion is too large")
    state.octets -= size
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


cdef list gather(Code code, Frame frame, int first, int count, bint with_marks, int* mark):
    """Operands as a list of Python values; `with_marks`: tainted ones as `Tainted`."""
    cdef list values = []
    cdef int at, operand, one
    cdef int total = CLEAN
    if first < 0 or count < 0 or first + count > code._pool_size:
        raise ValueError("operand list out of range")
    for at in range(first, first + count):
        operand = code._pool[at]
        value = fetch(code, frame.slots, operand)
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
    cdef list values = gather(code, frame, first, count, True, &mark)
    cdef object value = state.value
    cdef object item = state.item
    cdef tuple groups = state.groups
    hand_over(frame, state)
    spend(state, 20, 0)
    try:
        result = function(state, *values)
        frame.value_mark = CLEAN if state.value is None else mark_of(state.value)
        frame.value = plain(state.value)
        if state.groups is not groups:
            take_groups(frame, state.groups)
        return result
    finally:
        state.value = value
        state.item = item
        state.groups = groups


cdef int match(Frame frame, State state, object subject, int subject_mark, object pattern) except -1:
    # a constant pattern was compiled with the program
    regex = hooks.compile_regex(pattern) if type(pattern) is bytes else pattern
    groups = regex.search(subject)
    spend(state, 100, 0)
    if groups is None:
        return 0
    frame.groups = groups
    frame.groups_mark = subject_mark
    return 1


cdef int inlist(Frame frame, State state, object subject, object text, bint caseless) except -1:
    cdef bytes one = subject
    cdef bytes item
    for item in hooks.split(text, None):
        spend(state, 1, 0)
        if (order(one, item, True) == 0) if caseless else one == item:
            frame.value = item
            frame.value_mark = CLEAN
            return 1
    return 0


cdef object substitute(Code code, Frame frame, State state, object subject, object pattern, object replacement, int* mark):
    """`sg`: like Perl's s///g; the replacement is expanded for each match with `$0`, `$1` …"""
    regex = hooks.compile_regex(pattern)
    cdef int subject_mark = mark[0]
    cdef tuple groups = frame.groups
    cdef int groups_mark = frame.groups_mark
    cdef list out = []
    cdef Py_ssize_t at = 0, start, end
    cdef Py_ssize_t size = len(subject)
    cdef bint after_empty = False
    cdef int piece_mark
    cdef Code program = None
    while at <= size:
        spend(state, 100, 0)
        found = regex.span(subject, at, at_start=after_empty)
        if found is None:
            if not after_empty or at >= size:
                break
            # nothing but the empty match here: one octet goes over as it is
            out.append(subject[at:at + 1])
            at += 1
            after_empty = False
            continue
        start, end, matched = found
        out.append(subject[at:start])
        if program is None:
            program = hooks.compile_text(replacement, code._options)
        frame.groups = matched
        frame.groups_mark = subject_mark
        piece_mark = CLEAN
        piece = nested(program, frame, state, &piece_mark)
        mark[0] = join_marks(mark[0], piece_mark)
        out.append(piece)
        spend(state, 1, len(piece))
        after_empty = start == end
        at = end
        if after_empty and at >= size:
            break
    frame.groups = groups
    frame.groups_mark = groups_mark
    if not out:
        return subject
    if at < size:
        out.append(subject[at:])
    result = b"".join(out)
    spend(state, 1, len(result))
    return result


cdef object sort_add(State state, list pairs, object item, object key, int kind):
    """Put an item where the comparator wants it: before the first one it comes before."""
    cdef Py_ssize_t at
    cdef bint before
    for at in range(len(pairs)):
        spend(state, 1, 0)
        try:
            before = compare(kind, key, (<tuple> pairs[at])[1])
        except ExpandError:
            before = False
        if before:
            pairs.insert(at, (item, key))
            return None
    pairs.append((item, key))
    return None


cdef object second_expansion(Code code, Frame frame, State state, object text, int mark, bint operator, int* result_mark):
    """`${expand:…}`, and the list of `inlist`, which Exim expands twice."""
    if not operator and (mark or (b"$" not in text and b"\\" not in text)):
        result_mark[0] = mark
        return text
    shown = (<bytes> bytes(text)).decode("utf-8", "surrogateescape")
    if mark:
        raise ExpandError(f"attempt to expand tainted string '{shown}'")
    try:
        return nested(hooks.compile_text(text, code._options), frame, state, result_mark)
    except ExpandError as error:
        if not operator:
            raise
        error.message = f'internal expansion of "{shown}" failed: {error.message}'
        error.args = (error.message,)
        raise


cdef object quote(tuple quoter, object text):
    """Text through a quoter, unless no octet of it can change."""
    cdef const unsigned char* table = <const unsigned char*> PyBytes_AS_STRING(<bytes> quoter[1])
    cdef const unsigned char* source = <const unsigned char*> PyBytes_AS_STRING(<bytes> text)
    cdef Py_ssize_t at
    if PyBytes_GET_SIZE(<bytes> quoter[1]) != 256:
        raise ValueError("a quoter's table has 256 octets")
    for at in range(PyBytes_GET_SIZE(<bytes> text)):
        if table[source[at]]:
            return quoter[0](text)
    return text


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
    while True:
        if at >= code._size:
            raise ValueError("ran off the program")
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
            if value is None:
                slots[a] = constants[d]
                marks[a] = CLEAN
                continue
            if type(value) is not bytes:
                value = hooks.convert(value)
                marks[a] = mark_of(value)
                value = plain(value)
                if marks[a] == CLEAN and c:
                    marks[a] = TAINTED
            else:
                marks[a] = c
            slots[a] = value
        elif what == COMPARE:
            # kind, two operands, target with the wanted answer in bit 0
            answer = compare(a, fetch(code, slots, b), fetch(code, slots, c))
            if answer == (d & 1):
                at = d >> 1
        elif what == HOT:
            value = fetch(code, slots, c)
            if b == 1:
                value = lower(value)
            elif b == 2:
                value = upper(value)
            elif b == 3:
                value = b"%d" % len(value)
            else:
                value = address_part(value, b == 4)
            marks[a] = CLEAN if b == 3 else mark_at(frame, c)
            if marks[a] > TAINTED and b != 1 and b != 2:
                marks[a] = TAINTED
            elif marks[a] > TAINTED:
                marks[a] = TAINTED
            slots[a] = value
        elif what == JOIN:
            mark = CLEAN
            value = join(code, frame, state, b, c, &mark)
            marks[a] = mark
            slots[a] = value
        elif what == RETURN:
            result_mark[0] = mark_at(frame, a)
            return fetch(code, slots, a)
        elif what == MOVE:
            slots[a] = fetch(code, slots, b)
            marks[a] = mark_at(frame, b)
        elif what == QUOTE:
            # b: constant with the quoter, c: operand
            value = constants[b]
            mark = mark_at(frame, c)
            slots[a] = quote(<tuple> value, fetch(code, slots, c))
            marks[a] = <int> (<tuple> value)[2] if mark else CLEAN
            spend(state, 0, len(slots[a]))
        elif what == JUMP:
            if a < at:
                spend(state, 1, 0)
            at = a
        elif what == JUMP_NONE:
            if fetch(code, slots, a) is None:
                at = b
        elif what == JUMP_EMPTY:
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
                slots[a] = frame.groups[b]
                marks[a] = frame.groups_mark
            else:
                slots[a] = b""
                marks[a] = CLEAN
        elif what == APPLY:
            # b: constant with the operator's function and how to call it, c: operand, d: the result is clean
            value = constants[b]
            mark = mark_at(frame, c)
            if (<tuple> value)[1] == 0:
                value = (<tuple> value)[0](fetch(code, slots, c))
            elif (<tuple> value)[1] == 1:
                value = (<tuple> value)[0](fetch(code, slots, c), (<tuple> value)[2])
            else:
                value = (<tuple> value)[0](fetch(code, slots, c), (<tuple> value)[2], state)
            spend(state, 1, len(value))
            slots[a] = value
            marks[a] = CLEAN if d or not mark else TAINTED
        elif what == CALL:
            # b: constant with (function, the result is clean), c and d: operand list
            mark = CLEAN
            value = gather(code, frame, c, d, False, &mark)
            value = (<tuple> constants[b])[0](*value)
            if type(value) is bytes:
                spend(state, 1, len(value))
            slots[a] = value
            marks[a] = CLEAN if (<tuple> constants[b])[1] else mark
        elif what == SEAM:
            value = seam(code, frame, state, constants[b], c, d)
            slots[a] = plain(value)
            marks[a] = CLEAN if value is None else mark_of(value)
        elif what == VAR_OTHER:
            # b: constant with (name, source)
            value = hooks.variable(state, constants[b])
            slots[a] = plain(value)
            marks[a] = mark_of(value)
        elif what == NUMBER:
            slots[a] = hooks.integer(fetch(code, slots, b))
            marks[a] = CLEAN
        elif what == TEST:
            # a: constant with the function, b and c: operand list
            mark = CLEAN
            value = gather(code, frame, b, c, False, &mark)
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
        elif what == INLIST:
            answer = inlist(frame, state, fetch(code, slots, a), fetch(code, slots, b), c)
            if answer:
                frame.value_mark = mark_at(frame, b)
            if answer == (d & 1):
                at = d >> 1
        elif what == SET_VALUE:
            frame.value = fetch(code, slots, a)
            frame.value_mark = mark_at(frame, a)
        elif what == SAVE_VALUE:
            slots[a] = frame.value
            marks[a] = frame.value_mark
        elif what == SET_ITEM:
            frame.item = fetch(code, slots, a)
            frame.item_mark = mark_at(frame, a)
        elif what == SAVE_ITEM:
            slots[a] = frame.item
            marks[a] = frame.item_mark
        elif what == SET_GROUPS:
            frame.groups = fetch(code, slots, a)
            frame.groups_mark = mark_at(frame, a)
        elif what == SAVE_GROUPS:
            slots[a] = frame.groups
            marks[a] = frame.groups_mark
        elif what == SPLIT:
            # b: operand, c: kind (0 list, 1 list whose separator stands in the source, 2 json, 3 jsons)
            mark = mark_at(frame, b)
            value = hooks.split(fetch(code, slots, b), (c, mark != CLEAN))
            slots[a] = iter(value[0])
            slots[a + 1] = value[1]
            marks[a] = mark
            marks[a + 1] = CLEAN
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
            value = fetch(code, slots, b)
            (<list> slots[a]).append(value)
            marks[a] = join_marks(marks[a], mark_at(frame, b))
            spend(state, 1, len(value))
        elif what == JOIN_LIST:
            # b: slot with the list, c: slot with the separator, d: the list has pairs
            value = slots[b]
            if d:
                value = [pair[0] for pair in value]
            slots[a] = hooks.join_list(value, slots[c])
            marks[a] = marks[b]
            spend(state, 1, len(slots[a]))
        elif what == SORT_ADD:
            # a: slot with the list, b: item, c: key, d: operand with the comparator's number
            sort_add(state, <list> slots[a], fetch(code, slots, b), fetch(code, slots, c), fetch(code, slots, d))
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
            if mark_at(frame, d) and (b"$" in fetch(code, slots, d) or b"\\" in fetch(code, slots, d)):
                raise ExpandError("attempt to expand tainted string '%s'"
                                  % bytes(fetch(code, slots, d)).decode("utf-8", "surrogateescape"))
            value = substitute(code, frame, state, fetch(code, slots, b), fetch(code, slots, c), fetch(code, slots, d), &mark)
            slots[a] = value
            marks[a] = join_marks(mark, mark_at(frame, d))
        elif what == FAIL:
            value = constants[a]
            raise value[0](value[1], column=value[2])
        elif what == REFUSE_TAINTED:
            # a: operand, b: constant with what for
            if mark_at(frame, a):
                raise ExpandError("attempt to use tainted string '%s' for %s" % (
                    bytes(fetch(code, slots, a)).decode("utf-8", "surrogateescape"), constants[b]))
        else:
            raise ValueError("unknown instruction")
