-- msgpack for LuaJIT, with all that makes values safe among languages.
--
-- lua-MessagePack packs all strings as str or all as bin, loses ints beyond 2^53, ext values and nil
-- within arrays, and takes an empty map for an empty array. This file knows nothing of zkv.
--
--   string                   str if it is UTF-8, else bin; a str is read as a string
--   msgpack.bin(s)           bin, in both directions; tostring() gives the bytes
--   number                   int if it is whole, else float of 64 bits
--   int64_t, uint64_t        int; what is read beyond 2^53 is one of these
--   msgpack.null             nil, in both directions: Lua's own nil would leave no trace in a table
--   table                    array if its keys are 1, 2 ... n, else map
--   msgpack.map(t)           map, whatever its keys are; maps are read as such
--   msgpack.pairs(t)         any other map that is read, as { { key, value }, ... }: two of its keys are
--                            the same in Lua (the same twice; 1 and 1.0), or one is NaN, or something
--                            that Lua would compare by identity (array, bin, int beyond 2^53)
--   msgpack.packed(bytes)    what Lua has no type for, as it was packed: ext, timestamps among them, and
--                            a str that is not UTF-8

local bit = require "bit"
local ffi = require "ffi"

local msgpack = {}

local Bin, Map, Pairs, Packed, Null = {}, {}, {}, {}, {}
Bin.__index, Packed.__index = Bin, Packed
Bin.__tostring = function(bin) return bin.bytes end
Bin.__eq = function(a, b) return a.bytes == b.bytes end
Null.__tostring = function() return "null" end

msgpack.null = setmetatable({}, Null)
function msgpack.bin(bytes) return setmetatable({ bytes = bytes }, Bin) end
function msgpack.map(entries) return setmetatable(entries or {}, Map) end
function msgpack.pairs(list) return setmetatable(list, Pairs) end
function msgpack.packed(bytes) return setmetatable({ bytes = bytes }, Packed) end
function msgpack.is_bin(value) return getmetatable(value) == Bin end
function msgpack.is_map(value) return getmetatable(value) == Map end
function msgpack.is_packed(value) return getmetatable(value) == Packed end

-- ------------------------------------------------------------------------- packing

local INT64, UINT64 = ffi.typeof "int64_t", ffi.typeof "uint64_t"

-- The bytes of a number of one of C's types, the highest one first.
local function number(ctype, value)
  local box = ffi.new(ctype .. "[1]", value)
  local bytes = ffi.string(box, ffi.sizeof(box))
  return ffi.abi("le") and bytes:reverse() or bytes
end

-- All sequences of UTF-8 beyond ASCII.
local SEQUENCES = {
  "[\194-\223][\128-\191]", "\224[\160-\191][\128-\191]", "[\225-\236\238\239][\128-\191][\128-\191]",
  "\237[\128-\159][\128-\191]", "\240[\144-\191][\128-\191][\128-\191]",
  "[\241-\243][\128-\191][\128-\191][\128-\191]", "\244[\128-\143][\128-\191][\128-\191]",
}

local function is_utf8(text)
  if not text:find "[\128-\255]" then return true end
  for _, sequence in ipairs(SEQUENCES) do
    text = text:gsub(sequence, " ")
  end
  return not text:find "[\128-\255]"
end

local function head(short, limit, long, size)
  return size < limit and string.char(short + size) or string.char(long) .. number("uint32_t", size)
end

local pack

local function pack_table(value)
  local size, parts = 0, {}
  for _ in pairs(value) do size = size + 1 end
  if getmetatable(value) ~= Map then
    for i, item in ipairs(value) do parts[i] = pack(item) end
    if #parts == size then return head(0x90, 16, 0xdd, size) .. table.concat(parts) end
    parts = {}
  end
  for key, item in pairs(value) do parts[#parts + 1] = pack(key) .. pack(item) end
  return head(0x80, 16, 0xdf, size) .. table.concat(parts)
end

local function pack_pairs(value)
  local parts = { head(0x80, 16, 0xdf, #value) }
  for _, pair in ipairs(value) do parts[#parts + 1] = pack(pair[1]) .. pack(pair[2]) end
  return table.concat(parts)
end

local PACKERS = {
  ["nil"] = function() return "\xc0" end,
  boolean = function(value) return value and "\xc3" or "\xc2" end,
  string = function(value)
    return is_utf8(value) and head(0xa0, 32, 0xdb, #value) .. value or pack(msgpack.bin(value))
  end,
  number = function(value)
    local is_whole = value == math.floor(value) and (value ~= 0 or 1 / value > 0) -- -0 is a float
    if value > -2 ^ 53 and value < 2 ^ 53 and is_whole then
      if value >= -32 and value < 128 then return string.char(value % 256) end
      return "\xd3" .. number("int64_t", value)
    end
    return "\xcb" .. number("double", value)
  end,
  cdata = function(value)
    if ffi.istype(INT64, value) then return "\xd3" .. number("int64_t", value) end
    assert(ffi.istype(UINT64, value), "cannot pack this cdata")
    return "\xcf" .. number("uint64_t", value)
  end,
  table = function(value)
    local kind = getmetatable(value)
    if kind == Null then return "\xc0" end
    if kind == Packed then return value.bytes end
    if kind == Pairs then return pack_pairs(value) end
    if kind == Bin then return head(0, 0, 0xc6, #value.bytes) .. value.bytes end
    return pack_table(value)
  end,
}

function pack(value)
  local packer = PACKERS[type(value)] or error("cannot pack a " .. type(value), 0)
  return packer(value)
end
msgpack.pack = pack

-- ------------------------------------------------------------------------- unpacking

-- Reads the value at a position: `take(n)` gives the next bytes.
local function reader(data)
  local at = 1
  local read

  local function take(size)
    if at + size - 1 > #data then error("it ends too early", 0) end
    at = at + size
    return data:sub(at - size, at - 1)
  end

  local function take_number(ctype)
    local bytes = take(ffi.sizeof(ctype))
    local box = ffi.new(ctype .. "[1]")
    ffi.copy(box, ffi.abi("le") and bytes:reverse() or bytes, #bytes)
    return box[0]
  end

  -- An int of 64 bits, as a number if that can hold it.
  local function take_long(ctype)
    local long = take_number(ctype)
    local near = tonumber(long)
    return near > -2 ^ 53 and near < 2 ^ 53 and near or long
  end

  local UINTS = { "uint8_t", "uint16_t", "uint32_t" }
  local function size(index) return take_number(UINTS[index]) end

  local function array(count)
    local items = {}
    for i = 1, count do items[i] = read() end
    return items
  end

  local function is_key(value)
    return value == msgpack.null or type(value) ~= "table" and type(value) ~= "cdata" and value == value
  end

  local function map(count)
    local list, entries, fits = {}, {}, true
    for i = 1, count do
      local key, value = read(), read()
      list[i] = { key, value }
      fits = fits and is_key(key) and entries[key] == nil
      if fits then entries[key] = value end
    end
    return fits and msgpack.map(entries) or msgpack.pairs(list)
  end

  local function text(start, count)
    local bytes = take(count)
    return is_utf8(bytes) and bytes or msgpack.packed(data:sub(start, at - 1))
  end

  local function ext(start, count)
    take(count + 1)
    return msgpack.packed(data:sub(start, at - 1))
  end

  function read()
    local start = at
    local tag = take(1):byte()
    if tag < 0x80 then return tag end
    if tag < 0x90 then return map(tag - 0x80) end
    if tag < 0xa0 then return array(tag - 0x90) end
    if tag < 0xc0 then return text(start, tag - 0xa0) end
    if tag >= 0xe0 then return tag - 0x100 end
    if tag == 0xc0 then return msgpack.null end
    if tag == 0xc1 then error("no msgpack", 0) end
    if tag <= 0xc3 then return tag == 0xc3 end
    if tag <= 0xc6 then return msgpack.bin(take(size(tag - 0xc3))) end
    if tag <= 0xc9 then return ext(start, size(tag - 0xc6)) end
    if tag == 0xca then return take_number "float" end
    if tag == 0xcb then return take_number "double" end
    if tag <= 0xce then return size(tag - 0xcb) end
    if tag == 0xcf then return take_long "uint64_t" end
    if tag == 0xd0 then return take_number "int8_t" end
    if tag == 0xd1 then return take_number "int16_t" end
    if tag == 0xd2 then return take_number "int32_t" end
    if tag == 0xd3 then return take_long "int64_t" end
    if tag <= 0xd8 then return ext(start, bit.lshift(1, tag - 0xd4)) end
    if tag <= 0xdb then return text(start, size(tag - 0xd8)) end
    if tag <= 0xdd then return array(size(tag - 0xda)) end
    return map(size(tag - 0xdc))
  end

  return read, function() return at > #data end
end

-- The one value that the bytes hold; an error where they hold none, or more.
function msgpack.unpack(data)
  local read, at_end = reader(data)
  local value = read()
  if not at_end() then error("there is more than one value", 0) end
  return value
end

return msgpack
