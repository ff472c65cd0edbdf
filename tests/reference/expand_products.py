"""Expressions made by putting every operator before every text, every number into every item, and so on."""

# ruff: noqa: SIM905 - one list of texts a line is easier to read than one text a line

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEXTS: Final = [
    *("", "a", "ABC def", "Hello, World", "a.b-c_d", 'a"b', "a'b", "x y", "1", "0", "-1", "12abc", "é", "\\303\\251"),
    *("\\377", "\\001\\002", "\\t", "\\n", "a\\nb", "a\\\\b", "user@Example.COM", '"quoted user"@example.com'),
    *("Jane Doe <jane@example.com>", "<jane@example.com>", "@a,@b:c@d.e", "a@b@c", "a@[1.2.3.4]", "a b"),
    *("(comment) a@b (more)", "a@b.", "a@-b", "a@", "@b", "192.168.1.1", "2001:db8::1", "::1", "::ffff:1.2.3.4"),
    *("1.2.3", "300.1.1.1", "fe80::1%eth0"),
]
_TEXT_OPERATORS: Final = (
    "address addresses base32 base32d base62 base62d base64 base64d domain escape escape8bit eval eval10 from_utf8 "
    "hex2b64 hexquote ipv6denorm ipv6norm lc listcount local_part md5 quote quote_local_part reverse_ip rfc2047 "
    "rfc2047d rxquote sha1 sha256 str2b64 strlen time_eval time_interval uc utf8clean xtextd isip"
).split()
_SUMS: Final = """1+1|1 + 1| 1+1|1+1 |2*3+4|2+3*4|(2+3)*4|((1))|(1|1)|1+|+1|-1|--1|-+-1|~0|~1|- 1|~ 1|!1|7/2|-7/2|7%3|\
-7%3|7/-2|1/0|1%0|5/(3-3)|1<<3|1<<64|1<<63|1 << 3|256>>4|-1>>1|1<2|1<<|1&3|1^3|5&3^4^1|1^2&3|010|08|0x10|0xg|0x|010+1|\
1k|1K|2M|1G|1g|1T|1kk|1Kb|1.5|1,5|a|1a|9223372036854775807|9223372036854775808|9223372036854775807+1|-9223372036854775808|\
4611686018427387903+1|4611686018427387904+1|4611686018427387903+4611686018427387903|-4611686018427387904-1|\
99999999999999999999|0-9223372036854775807-1|(0-9223372036854775807-1)/-1|(-9223372036854775807-1)%-1|3*3*3|100-1-1|\
100/10/2|2-3|2--3|2+-3|2 3|2 * ( 3 + 4 )|1+(2*(3+(4)))|1+2)|()|1 |(1)(2)|0777|00|0x7fffffffffffffff|0xffffffffffffffff|\
1m+1k|-1k|-(2+3)|~(1)|1<<1<<1|7&~1|9223372036854775807-1|-9223372036854775807-4611686018427387903|\
4611686018427387903-(-4611686018427387903)|-9223372036854775807-(-1)""".split("|")
_BY_OPERATOR: Final = {
    "base62 base32": (
        "0|1|61|62|63|3843|999999|4294967295|4294967296|12345678901234567890|99999999999999999999|-1| 5|5 |+5"
    ),
    "base62d base32d": "0|A|z|10|zzzzzz|ZZZZZZZZZZ|abc|ABC|a1|b7|!| a|a a",
    "hex2b64": "ab|abc|abcd|61|6162|6G|ABCDEF|00|abcdefg| 61",
    "base64d": "YQ==|YWI=|YWJj|YWJjZA==|YQ|YWI|Y|Y===|YQ=|YQ==x|YWJj YWJj|Y W J j|****|AGEA|YQ==YQ==|YWJj=|==|=",
    "time_eval": "1s|1m|1h|1d|1w|1w2d3h4m5s|4d1h17m|1m1h|90|0s|s|1x|1 m|-1s|1s1s|1m30|1h30m|1.5h|5m5m|1W| 1s|1s ",
    "time_interval": "59|60|61|3600|3661|86400|604800|694861|x|1.5|99999999999| 5|5 |+5|4294967296",
    "mask mask_n": (
        "192.168.1.1/24|192.168.1.1/0|192.168.1.1/32|192.168.1.1/33|192.168.1.1|192.168.1.1/|192.168.1.1/x|"
        "2001:db8::1/32|2001:db8::1/128|2001:db8::1/129|::1/64|x/24|1.2.3/8|10.1.2.3/08|10.1.2.3/-1|2001:DB8::A/127|"
        "::ffff:1.2.3.4/96|10.1.2.3/24x"
    ),
    "listnamed listnamed_d listnamed_h listnamed_a listnamed_l listnamed_x listnamed_dd": "ld|+ld|lh|la|ll|nosuch|",
    "addresses address": (
        "a b|abc@x.org, def@y.org|(c) abc@x.org, grp: d@e.f, g@h.i;|a@b c@d|> a@b|>c a@b, c@d|>. a@b, c@d|>|"
        "<a@b>,<c@d>|a@b,,c@d|>+ a+b@c, d@e|>:a@b, c@d|bad@, good@x|Undisclosed:;|>; a@b, c;d@e"
    ),
    "rfc2047d": (
        "=?utf-8?q?abc?=|=?utf-8?Q?a=20b?=|=?utf-8?b?YWJj?=|=?utf-8?B?YWJj?= =?utf-8?B?YWJj?=|=?iso-8859-1?q?=E9?=|"
        "=?x-foo?q?abc?=|=?utf-8?q?a b?=|=?utf-8?b?!!?=|=?utf-8?x?abc?=|x =?utf-8?q?abc?= y|=?utf-8?q?=C3=A9?=|"
        "=?us-ascii*en?q?abc?=|=?utf-8?q?=?=|=?utf-8?q?abc|=??q?abc?="
    ),
    "rfc2047": (
        "a b é|x\\001y|long é text that goes on and on and on and on for longer than seventy-five characters|a=b?c_d é"
    ),
    "utf8clean from_utf8 escape escape8bit": (
        "\\303|a\\303b|\\377a|\\360\\237\\230\\200|\\360\\237\\230|\\300\\200|\\355\\240\\200|\\364\\220\\200\\200|\\302|"
        "\\341\\200|\\200\\200a|é\\303"
    ),
    "xtextd": "a+41b|+|+4|+zz|a+20b|+41+42|++41",
    "utf8_domain_to_alabel utf8_domain_from_alabel utf8_localpart_to_alabel utf8_localpart_from_alabel": (
        "bücher.example|xn--bcher-kva.example|abc.example|xn--zzzz---|\\377.x|ü|user@bücher.example"
    ),
    "sha2 sha2_224 sha2_256 sha2_384 sha2_512 sha2_1 sha2_x sha3 sha3_224 sha3_256 sha3_384 sha3_512 sha3_1": "abc|",
    "headerwrap headerwrap_20 headerwrap_80_998 headerwrap_x": "short|a long line with several words in it",
}
_LOOKUPS: Final = (
    "mysql pgsql sqlite redis oracle ldap ldap_dn nisplus lsearch dnsdb cdb passwd foo pgsql_x ldap_x lsearch_x "
    "dsearch nis ldapdn json dbm spf"
).split()


_SUBSTR: Final = (
    "0|1|3|9|-1|-3|-9|0_2|1_2|-2_1|-3_2|-9_5|-9_9|2_0|2_99|-2_0|9_1|_2|1_|x|-|1_-1|1__2|-0|1_2_3|99999999999"
)


def operators() -> Iterator[str]:
    """Every operator on texts it likes and on texts it does not."""
    for operator, text in product(_TEXT_OPERATORS, _TEXTS):
        yield f"${{{operator}:{text}}}"
    for operator, text in product(("eval", "eval10"), _SUMS):
        yield f"${{{operator}:{text}}}"
    for names, texts in _BY_OPERATOR.items():
        for operator, text in product(names.split(), texts.split("|")):
            yield f"${{{operator}:{text}}}"
    for lookup, text in product(_LOOKUPS, ("a'b\"c", "x y*(z)", " a#b ", "\\t\\n\\r\\b\\\\", "é", "")):
        yield f"${{quote_{lookup}:{text}}}"
    for number in ("1", "x", "-1", "", "10x", "1k", "+1", " ", " x"):
        yield f"${{if <{{${{randint:{number}}}}}{{1}}{{y}}{{n}}}}"


def pieces() -> Iterator[str]:
    """substr, length, hash, nhash and tr, as operators and as items."""
    for text in ("", "a", "abcdef"):
        for arguments in _SUBSTR.split("|"):
            yield f"${{substr_{arguments}:{text}}}"
        for name, arguments in product(("length", "l"), ("0", "1", "9", "1_2", "x", "-1", "", "_")):
            yield f"${{{name}_{arguments}:{text}}}"
        for name, arguments in product(
            ("hash", "h", "nhash", "nh"), "3|3_5|9|2_62|2_63|x|3_x|-1|5_5_5|_5|3_".split("|")
        ):
            yield f"${{{name}_{arguments}:{text}}}"
        for name, first in product(("substr", "length", "hash", "nhash"), "1|3|-1|-9|x||1k| 1|99999999999".split("|")):
            # 4.96 dies of hashes of nothing or less, and of nhash with an empty second number
            if name.endswith("hash") and first in ("", "-1", "-9"):
                continue
            yield f"${{{name}{{{first}}}{{{text}}}}}"
            for second in ("2", "-1", "x", "", "63"):
                if name != "length" and not (name.endswith("hash") and not second):
                    yield f"${{{name}{{{first}}}{{{second}}}{{{text}}}}}"
    for text, old, new in product(
        ("abc", "a\\.b", "hello world"), ("abc", "a", "", "aa", "abca", "lo"), ("x", "xyz", "")
    ):
        yield f"${{tr{{{text}}}{{{old}}}{{{new}}}}}"
    for algorithm, key in product(("md5", "sha1", "sha256", "MD5", "", "x"), ("key", "", "k" * 70)):
        yield f"${{hmac{{{algorithm}}}{{{key}}}{{text}}}}"


_DOMAIN_LISTS: Final = [
    *(
        "a.test",
        "*.test",
        "*",
        "a.test : b.test",
        "!a.test",
        "!a.test : *",
        "! a.test : !b.test",
        "^a\\\\.",
        "\\N^a\\.\\N",
    ),
    *(
        "^A\\N\\.\\N",
        "+ld",
        "+nosuch",
        "",
        "a.test:",
        "b.test : +ld",
        "<; a.test;b.test",
        "<;a.test",
        "A.TEST",
        "*test",
    ),
    *("**", "*.", "@", "x : !+ld : *", "$primary_hostname", "\\$primary_hostname", "a\\.test", "*a.test", "^"),
]
_NETWORK_LISTS: Final = [
    *("10.0.0.1", "10.0.0.0/8", "*", "10.0.0.0/8 : 192.168.0.0/16", "!10.0.0.1 : 10.0.0.0/8", "+lh", "!+lh", "@[]"),
    *("<; 2001:db8::1", "<; 2001:db8::/32", "2001::db8::1", "host.test", "10.0.0.0/33", "10.0.0.1/8", "", "*.10", "x"),
    *("<; ::/0", "0.0.0.0/0", "10.0.0.0/", "10.0.0/8", "^10", "10.0.0.1 : x"),
]
_ADDRESS_LISTS: Final = [
    *("x@a.test", "X@a.test", "*@a.test", "a.test", "*.test", "*", "+la", "^x@", "^X@", "x@*", "*@*.test", "*x@a.test"),
    *(
        "!x@a.test : *",
        "",
        "y@b : x@a.test",
        "x@a.test :",
        "@a.test",
        "x@",
        "<, x@a.test, z@z",
        "*@+ld",
        "x@+ld",
        "+ld",
    ),
    *("^.*@a\\N\\.\\Ntest\\N$\\N", "b.test"),
]


def conditions() -> Iterator[str]:
    """Every condition on two strings, on numbers, on addresses and on lists."""
    numbers = "|0|1|-1| 1|1 |+1|1k|1K|1m|1g|1kk|1x|x|1.5|0x10|010|9223372036854775807|9223372036854775808|" + (
        "-9223372036854775808|9007199254740993k|1 k|- 1|--1|k| |  x"
    )
    for number in numbers.split("|"):
        for form in ("={%s}{1}", "<{1}{%s}", ">={%s}{0}"):
            yield f"${{if {form % number}{{y}}{{n}}}}"
    pairs = "a,b|b,a|a,a|A,a|a,A|,a|a,|,|ab,a|a,ab|é,É|\\377,\\177|a b,a  b|Z,a|_,a|[,a|[,A".split("|")
    for name, pair in product("eq eqi lt lti le lei gt gti ge gei".split(), pairs):
        first, second = pair.split(",")
        yield f"${{if {name}{{{first}}}{{{second}}}{{y}}{{n}}}}"
    truths = (
        "|0|1|-1|00|-0|--1|-|true|TRUE|True|false|FALSE|yes|YES|no|No| true | 0 | |2|10|0x1|on|off|y|n|t|1x|x1|+1|1 2"
    )
    for name, text in product(("bool", "bool_lax"), truths.split("|")):
        yield f"${{if {name}{{{text}}}{{y}}{{n}}}}"
    addresses = (
        "1.2.3.4|1.2.3|1.2.3.4.5|256.1.1.1|01.2.3.4|1.2.3.4/24|::|::1|2001:db8::1|2001:db8::1/64|fe80::1%eth0|"
        "::ffff:1.2.3.4|1::2::3|1:2:3:4:5:6:7:8|1:2:3:4:5:6:7|1:2:3:4:5:6:7:8:9|:||x|1.2.3.4x| 1.2.3.4|1.2.3.4 |g::1|"
        "12345::|[::1]|[1.2.3.4]|1:2:3:4:5:6:1.2.3.4|::1.2.3|1.2.3.|..."
    )
    for name, text in product(("isip", "isip4", "isip6"), addresses.split("|")):
        yield f"${{if {name}{{{text}}}{{y}}{{n}}}}"
    for members, domain in product(_DOMAIN_LISTS, ("a.test", "A.Test", "x.b.test", "q.example", "")):
        yield f"${{if match_domain{{{domain}}}{{{members}}}{{y$value}}{{n}}}}"
    for members, local in product(
        ("ann", "ANN", "*", "*n", "^a", "+ll", "!ann", "!ann : *", "bob : ann", "", "+ld", "<, bob, ann", "!+ll"),
        ("ann", "Ann", "bob", "", "joe"),
    ):
        yield f"${{if match_local_part{{{local}}}{{{members}}}{{y$value}}{{n}}}}"
    for members, address in product(_ADDRESS_LISTS, ("x@a.test", "X@A.TEST", "y@x.b.test", "", "x", "a.test")):
        yield f"${{if match_address{{{address}}}{{{members}}}{{y$value}}{{n}}}}"
    for members, address in product(
        _NETWORK_LISTS, ("10.0.0.1", "192.168.1.1", "2001:db8::1", "x", "", "::ffff:10.0.0.1", "10.0.0.1/8")
    ):
        yield f"${{if match_ip{{{address}}}{{{members}}}{{y}}{{n}}}}"
    digests = (
        "{md5}X03MO1qnZdYdgyfeuILPmQ==|{md5}5f4dcc3b5aa765d61d8327deb882cf99|{md5}5F4DCC3B5AA765D61D8327DEB882CF99|"
        "{MD5}5f4dcc3b5aa765d61d8327deb882cf99|{md5}|{md5}xx|{sha1}W6ph5Mm5Pz8GgiULbPgzG37mj9g=|"
        "{sha1}5baa61e4c9b93f3f0682250b6cf8331b7ee68fd8|{sha1}x|{foo}x|{||a|{md5"
    )
    for digest, password in product(digests.split("|"), ("password", "x", "")):
        quoted = digest.replace("{", "\\{").replace("}", "\\}")
        yield f"${{if crypteq{{{password}}}{{{quoted}}}{{y}}{{n}}}}"
