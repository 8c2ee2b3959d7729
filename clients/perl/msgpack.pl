# msgpack for Perl, with all that makes values safe among languages.
#
# Data::MessagePack packs all strings as bin, or all as str, and dies of ext values. This file knows
# nothing of zkv.
#
#   undef, true, false   nil and bool; true and false are JSON::PP's, and from Perl 5.36 its own, too
#   number               int if it is whole, else float of 64 bits
#   string               str: Perl's characters, not their UTF-8
#   Zkv::Bin             bin, in both directions; as a string it is the bytes
#   array                array
#   hash                 map whose keys are text, each of them once
#   Zkv::Pairs           any other map, as an array of its keys and values in turn
#   Zkv::Packed          what Perl has no type for, as it was packed: ext, timestamps among them, and
#                        a str that is not UTF-8

use v5.20;
use warnings;

# Bytes that are no text, msgpack's bin. As a string it is the bytes.
package Zkv::Bin {
    use overload '""' => sub { ${ $_[0] } }, fallback => 1;
    sub new { my ($class, $bytes) = @_; return bless \$bytes, $class }
    sub TO_JSON { return ${ $_[0] } }
}

# A map that a hash cannot hold: an array of its keys and values in turn.
package Zkv::Pairs {
    sub new { my ($class, @keys_and_values) = @_; return bless \@keys_and_values, $class }
    sub TO_JSON { return [@{ $_[0] }] }
}

# What Perl has no type for, as it was packed: ext values, timestamps among them.
package Zkv::Packed {
    sub new { my ($class, $bytes) = @_; return bless \$bytes, $class }
    sub TO_JSON { return unpack 'H*', ${ $_[0] } }
}

# Values to msgpack and back.
package Zkv::Msgpack {
    use B        ();
    use JSON::PP ();    # for its true and false
    no warnings qw(recursion experimental);

    my ($data, $at);    # what is being unpacked, and how far

    sub encode {
        my ($value) = @_;
        my $type = ref $value;
        if (!defined $value)      { return "\xc0" }
        if (!$type)               { return _encode_scalar($value) }
        if ($type eq 'ARRAY')     { return _head(0x90, 16, 0xdd, scalar @$value) . join '', map { encode($_) } @$value }
        if ($type eq 'Zkv::Bin')  { return _head(0, 0, 0xc6, length $$value) . $$value }
        if ($type eq 'Zkv::Packed')    { return $$value }
        if ($type eq 'Zkv::Pairs')     { return _head(0x80, 16, 0xdf, @$value / 2) . join '', map { encode($_) } @$value }
        if (JSON::PP::is_bool($value)) { return $value ? "\xc3" : "\xc2" }
        if ($type ne 'HASH')           { die "cannot pack: $value\n" }
        return _head(0x80, 16, 0xdf, scalar keys %$value) . join '', map { _text($_), encode($value->{$_}) } keys %$value;
    }

    # Perl makes floats of ints at will (10 / 2), so a whole number goes as an int, whichever it is.
    sub _encode_scalar {
        my ($value) = @_;
        my $flags = B::svref_2object(\$value)->FLAGS;
        if ($] >= 5.036 && builtin::is_bool($value)) { return $value ? "\xc3" : "\xc2" }
        if ($flags & B::SVf_POK || !($flags & (B::SVf_IOK | B::SVf_NOK))) { return _text($value) }
        my $is_whole = abs $value < 2**53 && $value == int $value && sprintf('%g', $value) ne '-0';
        if (!($flags & B::SVf_IOK) && !$is_whole) { return pack 'C d>', 0xcb, $value }
        if ($value >= -32 && $value < 128) { return pack 'c', $value }
        return $value < 0 ? pack 'C q>', 0xd3, $value : pack 'C Q>', 0xcf, $value;
    }

    sub _text {
        my ($text) = @_;
        utf8::encode($text);
        return _head(0xa0, 32, 0xdb, length $text) . $text;
    }

    sub _head {
        my ($short, $limit, $long, $size) = @_;
        return $size < $limit ? chr($short | $size) : pack 'C N', $long, $size;
    }

    # The one value that the bytes hold; dies where they hold none, or more.
    sub decode {
        ($data, $at) = (@_, 0);
        my $value = _next();
        $at == length $data or die "there is more than one value\n";
        return $value;
    }

    sub _next {
        my $start = $at;
        my $tag   = ord _take(1);
        if ($tag < 0x80)  { return $tag }
        if ($tag < 0x90)  { return _map($tag & 0x0f) }
        if ($tag < 0xa0)  { return _list($tag & 0x0f) }
        if ($tag < 0xc0)  { return _str($start, $tag & 0x1f) }
        if ($tag >= 0xe0) { return $tag - 0x100 }
        if ($tag == 0xc0) { return undef }
        if ($tag == 0xc1) { die "no msgpack\n" }
        if ($tag <= 0xc3) { return $tag == 0xc3 ? JSON::PP::true() : JSON::PP::false() }
        if ($tag <= 0xc6) { return Zkv::Bin->new(_take(_number($tag - 0xc4, qw(C S> L>)))) }
        if ($tag <= 0xc9) { _take(_number($tag - 0xc7, qw(C S> L>)) + 1); return _packed($start) }
        if ($tag == 0xca) { return unpack 'f>', _take(4) }
        if ($tag == 0xcb) { return unpack 'd>', _take(8) }
        if ($tag <= 0xcf) { return _number($tag - 0xcc, qw(C S> L> Q>)) }
        if ($tag <= 0xd3) { return _number($tag - 0xd0, qw(c s> l> q>)) }
        if ($tag <= 0xd8) { _take((1 << $tag - 0xd4) + 1); return _packed($start) }
        if ($tag <= 0xdb) { return _str($start, _number($tag - 0xd9, qw(C S> L>))) }
        if ($tag <= 0xdd) { return _list(_number($tag - 0xdc, qw(S> L>))) }
        return _map(_number($tag - 0xde, qw(S> L>)));
    }

    sub _take {
        my ($size) = @_;
        ($at += $size) <= length $data or die "it ends too early\n";
        return substr $data, $at - $size, $size;
    }

    sub _number {
        my ($index, @formats) = @_;
        my $width = length pack $formats[$index], 0;
        return unpack $formats[$index], _take($width);
    }

    sub _packed { my ($start) = @_; return Zkv::Packed->new(substr $data, $start, $at - $start) }

    sub _str {
        my ($start, $size) = @_;
        my $text = _take($size);
        return utf8::decode($text) ? $text : _packed($start);
    }

    sub _list { my ($size) = @_; my @list; push @list, _next() while $size-- > 0; return \@list }

    sub _map {
        my ($size) = @_;
        my (@pairs, %map);
        my $texts = 0;
        for (1 .. $size) {
            my $tag = ord substr $data, $at, 1;
            my ($key, $value) = (_next(), _next());
            push @pairs, $key, $value;
            my $is_str = ($tag & 0xe0) == 0xa0 || $tag >= 0xd9 && $tag <= 0xdb;
            if ($is_str && !ref $key) { $texts++; $map{$key} = $value }
        }
        return $texts == $size && keys %map == $size ? \%map : Zkv::Pairs->new(@pairs);
    }
}

1;
