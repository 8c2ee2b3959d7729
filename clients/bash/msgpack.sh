# msgpack for bash. It knows nothing of zkv.
#
# No variable of bash can hold a NUL, so packed values are hex: "a3616263" is the str "abc". What makes
# them puts them into a variable, as `printf -v` does; what reads them works on $packed, a whole
# value in hex, from byte $at on. Floats, ext values and timestamps are read, and not made.

# Prints the bytes that the hex stands for. For a few, sed would take longer to start than to run.
mp_bytes() {
  local _escaped=''
  local -i _i
  if ((${#1} > 3000)); then
    _escaped=$(sed 's/../\\x&/g' <<<"$1")
  else
    for ((_i = 0; _i < ${#1}; _i += 2)); do _escaped+=\\x${1:_i:2}; done
  fi
  printf "$_escaped"
}

# mp_str VARIABLE TEXT...: packs texts, one behind the other.
mp_str() {
  local LC_ALL=C _text _byte _packed=''
  local -i _i
  for _text in "${@:2}"; do
    mp_head _byte a0 32 db ${#_text} && _packed+=$_byte
    for ((_i = 0; _i < ${#_text}; _i++)); do
      printf -v _byte %02x "'${_text:_i:1}"
      _packed+=$_byte
    done
  done
  printf -v "$1" %s "$_packed"
}

# mp_int VARIABLE INT, of 64 bits with sign
mp_int() {
  [[ $2 =~ ^\+?(-?)0*([0-9]+)$ ]] || return 2 # zeros in front would make it octal
  local _digits=${BASH_REMATCH[1]}${BASH_REMATCH[2]}
  [[ $((_digits)) == "${_digits/#-0/0}" ]] || return 2 # more than 64 bits
  if ((_digits >= -32 && _digits < 128)); then
    printf -v "$1" %02x $((_digits & 255))
  else
    printf -v "$1" d3%016x "$_digits"
  fi
}

# mp_bin VARIABLE HEX
mp_bin() { printf -v "$1" c6%08x%s $((${#2} / 2)) "$2"; }

# mp_head VARIABLE SHORT LIMIT LONG SIZE: the tag SHORT holds sizes below the limit.
mp_head() { if (($5 < $3)); then printf -v "$1" %02x $((16#$2 + $5)); else printf -v "$1" %s%08x "$4" "$5"; fi; }

# Reads the head of what is at byte $at of $packed: its kind, and n, which is the value of an int, or
# how many items, or bytes, there are. Then $at is behind the head. Who calls this has the variables
# `local packed kind window; local -i at=0 n=0 base=-1`.
mp_next() {
  local tag digits
  local -i byte width=0
  # Any look into a long string takes bash through all of it, so it looks into a short part.
  if ((base < 0 || at < base || at > base + 500)); then window=${packed:at*2:1020} base=at; fi
  tag=${window:(at-base)*2:2}
  [[ $tag ]] || return
  byte=16#$tag n=0 at+=1
  case $tag in
    [0-7]?) kind=int n=byte ;;
    8?) kind=map n=byte-0x80 ;;
    9?) kind=array n=byte-0x90 ;;
    [ab]?) kind=str n=byte-0xa0 ;;
    [ef]?) kind=int n=byte-0x100 ;;
    c0) kind=nil ;;
    c2) kind=false ;;
    c3) kind=true ;;
    c[456]) kind=bin width=1\<\<byte-0xc4 ;;
    c[789]) kind=ext width=1\<\<byte-0xc7 ;;
    ca) kind=float n=4 ;;
    cb) kind=float n=8 ;;
    c[c-f]) kind=int width=1\<\<byte-0xcc ;;
    d[0-3]) kind=int width=1\<\<byte-0xd0 ;;
    d[4-8]) kind=ext n=1\<\<byte-0xd4 ;;
    d[9ab]) kind=str width=1\<\<byte-0xd9 ;;
    d[cd]) kind=array width=2\<\<byte-0xdc ;;
    d[ef]) kind=map width=2\<\<byte-0xde ;;
    *) return 1 ;;
  esac
  if ((width == 0)); then return; fi
  digits=${window:(at-base)*2:width*2}
  ((${#digits} == width * 2)) || return
  n=16#$digits at+=width
  case $tag in d[0-2]) n=n\<\<64-8*width\>\>64-8*width ;; cf) if ((n < 0)); then kind=uint; fi ;; esac
}

# Moves $at behind a whole value.
mp_skip() {
  local -i todo
  for ((todo = 1; todo > 0; todo--)); do
    mp_next || return
    case $kind in
      array) todo+=n ;;
      map) todo+=2*n ;;
      str | bin | float) at+=n ;;
      ext) at+=n+1 ;;
    esac
  done
}

# Puts the text of a str whose head has been read into a variable.
mp_take() {
  local _hex=${packed:at*2:n*2} _escaped=''
  local -i _i
  for ((_i = 0; _i < 2 * n; _i += 2)); do _escaped+=\\x${_hex:_i:2}; done
  printf -v "$1" %b "$_escaped"
  at+=n
}

# Prints a value: text and bin as they are, anything else as JSON.
mp_show() {
  local kind window packed=$1
  local -i at=0 n=0 base=-1
  mp_next || return
  case $kind in
    str | bin) mp_bytes "${packed:at*2}" && echo ;;
    *) mp_json "$1" ;;
  esac
}

# Prints a value as JSON in one line: bin as {"$bin": base64}, ext as {"$ext": [type, base64]}.
mp_json() {
  local LC_ALL=C kind window packed=$1 json=''
  local -i at=0 n=0 base=-1
  _mp_json && printf '%s\n' "$json"
}

_mp_json() {
  local part hex
  local -i i count
  mp_next || return
  case $kind in
    nil) json+=null ;;
    true | false) json+=$kind ;;
    int) json+=$n ;;
    uint) printf -v part %u "$n" && json+=$part ;;
    float) _mp_float "${packed:at*2:n*2}" && at+=n ;;
    str)
      json+=\"
      hex=${packed:at*2:n*2} at+=n
      for ((i = 0; i < ${#hex}; i += 2)); do
        part=${hex:i:2}
        case $part in [01]? | 22 | 5c) json+=\\u00$part ;; *) printf -v part %b "\\x$part" && json+=$part ;; esac
      done
      json+=\" ;;
    bin) json+="{\"\$bin\": \"$(mp_bytes "${packed:at*2:n*2}" | base64 -w0)\"}" at+=n ;;
    ext)
      i=$((16#${packed:at*2:2} << 56 >> 56))
      json+="{\"\$ext\": [$i, \"$(mp_bytes "${packed:at*2+2:n*2}" | base64 -w0)\"]}" at+=n+1 ;;
    array)
      json+=[
      for ((i = 0, count = n; i < count; i++)); do
        ((i == 0)) || json+=', '
        _mp_json || return
      done
      json+=] ;;
    map)
      json+={
      for ((i = 0, count = n; i < count; i++)); do
        ((i == 0)) || json+=', '
        part=$json json=''
        _mp_json || return
        [[ $json == \"* ]] || json=\"${json//\"/\'}\" # JSON knows no other keys
        json=$part$json': '
        _mp_json || return
      done
      json+=} ;;
  esac
}

# The decimal digits of a float, by way of the hexadecimal ones, which printf reads.
_mp_float() {
  local -i bits=16#$1 power fraction last
  local number sign=''
  if ((${#1} == 8)); then
    ((power = bits >> 23 & 0xff, fraction = (bits & 0x7fffff) << 29, bits <<= 32, last = 127)) || :
  else
    ((power = bits >> 52 & 0x7ff, fraction = bits & 0xfffffffffffff, last = 1023)) || :
  fi
  if ((bits < 0)); then sign=-; fi
  if ((power > 2 * last)); then
    if ((fraction)); then number=NaN; else number=${sign}Infinity; fi
    json+="{\"\$float\": \"$number\"}"
  else
    printf -v number 0x%d.%013xp%d $((power > 0)) "$fraction" $((power - last + (power == 0)))
    printf -v number %.17g "$sign$number"
    json+=$number
  fi
}
