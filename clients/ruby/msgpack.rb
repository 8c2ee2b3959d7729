# frozen_string_literal: true

# msgpack for Ruby, with all that makes values safe among languages.
#
# The gem msgpack packs as it should. But it reads 128 levels at most, keeps the last of two equal keys,
# and takes for a time what is none; so this file reads by itself. It knows nothing of zkv.
#
#   String in UTF-8, in BINARY     str, bin
#   Integer, Float                 int, float of 64 bits
#   Array, Hash                    array, map
#   Zkv::Pairs                     a map that a Hash cannot hold: a key stands in it twice
#   Time                           timestamp, to the nanosecond
#   MessagePack::ExtensionValue    any other ext

require "json"
require "msgpack"

module Zkv
  # A map as an Array of [key, value].
  Pairs = Struct.new(:pairs) do
    def to_msgpack(packer)
      packer.write_map_header(pairs.size)
      pairs.flatten(1).each { |part| packer.write(part) }
    end

    def to_json(...) = pairs.to_json(...)
  end

  # Values to msgpack and back, and to JSON.
  module Msgpack
    FACTORY = MessagePack::Factory.new
    FACTORY.register_type(-1, Time, packer: MessagePack::Time::Packer)

    def self.pack(value) = FACTORY.dump(value)

    # The one value that the bytes hold. Raises MessagePack::UnpackError.
    def self.unpack(bytes)
      reader = Reader.new(bytes.b)
      value = reader.next
      reader.done? ? value : raise(MessagePack::MalformedFormatError, "there is more than one value")
    end

    # A value on one line; what JSON does not know is shown as Ruby shows it.
    def self.to_json(value)
      JSON.generate(value, max_nesting: 0)
    rescue JSON::JSONError, EncodingError # bin within something else, or no finite number
      value.inspect
    end

    # Reads one value after the other.
    class Reader
      def initialize(bytes)
        @bytes = bytes
        @at = 0
      end

      def done? = @at == @bytes.bytesize

      def next # rubocop:disable Metrics
        case tag = take(1).ord
        when 0x00..0x7f then tag
        when 0x80..0x8f then map(tag & 0x0f)
        when 0x90..0x9f then array(tag & 0x0f)
        when 0xa0..0xbf then text(tag & 0x1f)
        when 0xc0 then nil
        when 0xc2, 0xc3 then tag == 0xc3
        when 0xc4..0xc6 then take(number(tag - 0xc4, "C", "n", "N"))
        when 0xc7..0xc9 then ext(number(tag - 0xc7, "C", "n", "N"))
        when 0xca, 0xcb then number(tag - 0xc8, nil, nil, "g", "G")
        when 0xcc..0xcf then number(tag - 0xcc, "C", "n", "N", "Q>")
        when 0xd0..0xd3 then number(tag - 0xd0, "c", "s>", "l>", "q>")
        when 0xd4..0xd8 then ext(1 << tag - 0xd4)
        when 0xd9..0xdb then text(number(tag - 0xd9, "C", "n", "N"))
        when 0xdc, 0xdd then array(number(tag - 0xdb, nil, "n", "N"))
        when 0xde, 0xdf then map(number(tag - 0xdd, nil, "n", "N"))
        when 0xe0..0xff then tag - 0x100
        else raise MessagePack::MalformedFormatError, "no msgpack"
        end
      end

      private

      def take(size)
        @at += size
        @at <= @bytes.bytesize or raise MessagePack::MalformedFormatError, "it ends too early"
        @bytes.byteslice(@at - size, size)
      end

      # A number of 1, 2, 4 or 8 bytes.
      def number(log2, *formats) = take(1 << log2).unpack1(formats[log2])

      def text(size) = take(size).force_encoding(Encoding::UTF_8)

      def array(size) = Array.new(size) { self.next }

      def map(size)
        pairs = Array.new(size) { [self.next, self.next] }
        hash = pairs.to_h
        hash.size == size ? hash : Pairs.new(pairs)
      end

      def ext(size)
        type = number(0, "c")
        data = take(size)
        seconds, nanoseconds = timestamp(data) if type == -1
        return MessagePack::ExtensionValue.new(type, data) unless seconds && nanoseconds < 1_000_000_000

        Time.at(seconds, nanoseconds, :nanosecond)
      end

      def timestamp(data)
        case data.bytesize
        when 4 then [data.unpack1("N"), 0]
        when 8 then data.unpack1("Q>").then { |both| [both & 0x3ffffffff, both >> 34] }
        when 12 then data.unpack("Nq>").reverse
        end
      end
    end
  end
end
