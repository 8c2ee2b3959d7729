<?php

/**
 * msgpack for PHP, with all that makes values safe among languages.
 *
 * PHP's extension of that name packs every string as str, binary ones too, reads ext values as null,
 * and an empty map as it likes. This file needs no extension, and knows nothing of zkv.
 *
 *   null, bool, int, float     themselves; a float has 64 bits
 *   string                     str if it is UTF-8, else bin; a str is read as a string
 *   Bin                        bin, in both directions; (string) gives its bytes
 *   array that is a list       array, in both directions
 *   stdClass, any other array  map; one whose keys are text, each of them once, is read as stdClass
 *   Pairs                      any other map
 *   Packed                     what PHP has no type for, as it was packed: ext, ints above PHP_INT_MAX,
 *                              and a str that is not UTF-8
 */

declare(strict_types=1);

namespace Zkv;

/** Bytes that are no text: msgpack's bin. A string that is not UTF-8 is packed as bin even without. */
final class Bin
{
    public function __construct(public readonly string $bytes) {}
    public function __toString(): string { return $this->bytes; }
}

/** What PHP has no type for, as it is packed: ext values, timestamps, ints above PHP_INT_MAX, a str that is not UTF-8. */
final class Packed implements \JsonSerializable
{
    public function __construct(public readonly string $bytes) {}
    public function jsonSerialize(): string { return bin2hex($this->bytes); }
}

/** A map that no object can hold: a list of [key, value]. */
final class Pairs implements \JsonSerializable
{
    public function __construct(public readonly array $pairs) {}
    public function jsonSerialize(): array { return $this->pairs; }
}

/** Values to msgpack and back. A map is an object, and may be given as an array that is no list. */
final class Msgpack
{
    private int $at = 0;

    private function __construct(private readonly string $data) {}

    public static function pack(mixed $value): string
    {
        return match (true) {
            $value === null => "\xc0",
            is_bool($value) => $value ? "\xc3" : "\xc2",
            is_int($value) => $value >= -32 && $value <= 127 ? pack('c', $value) : "\xd3" . pack('J', $value),
            is_float($value) => "\xcb" . pack('E', $value),
            is_string($value) && preg_match('//u', $value) => self::head(0xa0, 32, 0xdb, strlen($value)) . $value,
            is_string($value), $value instanceof Bin => self::head(0, 0, 0xc6, strlen("$value")) . $value,
            is_array($value) && array_is_list($value) =>
                self::head(0x90, 16, 0xdd, count($value)) . implode(array_map(self::pack(...), $value)),
            is_array($value) => self::packMap(array_keys($value), $value),
            // PHP makes an int of the name '1', but an object's names are text.
            $value instanceof \stdClass => self::packMap(array_map(strval(...), array_keys((array) $value)), (array) $value),
            $value instanceof Pairs => self::packMap(array_column($value->pairs, 0), array_column($value->pairs, 1)),
            $value instanceof Packed => $value->bytes,
            default => throw new \InvalidArgumentException('cannot pack ' . get_debug_type($value)),
        };
    }

    private static function packMap(array $keys, array $values): string
    {
        $pairs = array_map(fn ($key, $value) => self::pack($key) . self::pack($value), $keys, $values);
        return self::head(0x80, 16, 0xdf, count($keys)) . implode($pairs);
    }

    private static function head(int $short, int $limit, int $long, int $size): string
    {
        return $size < $limit ? chr($short | $size) : chr($long) . pack('N', $size);
    }

    /** The one value that $data holds. Throws UnexpectedValueException. */
    public static function unpack(string $data): mixed
    {
        $reader = new self($data);
        $value = $reader->next();
        return $reader->at === strlen($data) ? $value : throw new \UnexpectedValueException('more than one value');
    }

    private function next(): mixed
    {
        $start = $this->at;
        $tag = ord($this->take(1));
        return match (true) {
            $tag < 0x80 => $tag,
            $tag < 0x90 => $this->map($tag & 0x0f),
            $tag < 0xa0 => $this->list($tag & 0x0f),
            $tag < 0xc0 => $this->text($start, $tag & 0x1f),
            $tag >= 0xe0 => $tag - 0x100,
            $tag === 0xc0 => null,
            $tag === 0xc1 => throw new \UnexpectedValueException('no msgpack'),
            $tag <= 0xc3 => $tag === 0xc3,
            $tag <= 0xc6 => new Bin($this->take($this->uint($tag - 0xc4))),
            $tag <= 0xc9 => $this->packed($start, $this->uint($tag - 0xc7) + 1),
            $tag <= 0xcb => $tag === 0xca ? unpack('G', $this->take(4))[1] : unpack('E', $this->take(8))[1],
            $tag <= 0xcf => ($int = $this->uint($tag - 0xcc)) < 0 ? $this->packed($start, 0) : $int,
            $tag <= 0xd3 => $this->uint($tag - 0xd0) << ($spare = 64 - (8 << $tag - 0xd0)) >> $spare, // signed
            $tag <= 0xd8 => $this->packed($start, (1 << $tag - 0xd4) + 1),
            $tag <= 0xdb => $this->text($start, $this->uint($tag - 0xd9)),
            $tag <= 0xdd => $this->list($this->uint($tag - 0xdb)),
            default => $this->map($this->uint($tag - 0xdd)),
        };
    }

    private function take(int $size): string
    {
        $this->at += $size;
        return $this->at <= strlen($this->data) ? substr($this->data, $this->at - $size, $size)
            : throw new \UnexpectedValueException('it ends too early');
    }

    /** An int of 1, 2, 4 or 8 bytes; PHP shows one above PHP_INT_MAX as negative. */
    private function uint(int $log2): int
    {
        return unpack('CnNJ'[$log2], $this->take(1 << $log2))[1];
    }

    private function packed(int $start, int $more): Packed
    {
        $this->take($more);
        return new Packed(substr($this->data, $start, $this->at - $start));
    }

    private function list(int $size): array
    {
        for ($list = []; $size > 0; $size--) {
            $list[] = $this->next();
        }
        return $list;
    }

    private function text(int $start, int $size): string|Packed
    {
        $text = $this->take($size);
        return preg_match('//u', $text) ? $text : $this->packed($start, 0);
    }

    private function map(int $size): \stdClass|Pairs
    {
        $pairs = $map = [];
        $fits = true;
        for ($left = $size; $left > 0; $left--) {
            $pairs[] = [$key, $value] = [$this->next(), $this->next()];
            if (!is_string($key) || str_starts_with($key, "\0")) { // PHP reads no property with such a name
                $fits = false;
            } else {
                $map[$key] = $value;
            }
        }
        return $fits && count($map) === $size ? (object) $map : new Pairs($pairs);
    }
}
