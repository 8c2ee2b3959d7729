#!/usr/bin/env bash

# A client for a zkv server in bash: functions to source, with a command line at their end.
#
# There is no ZeroMQ for bash, so this is the wire itself: ZMTP 3.0 with the mechanism NULL, over
# /dev/tcp. A value is the hex of its msgpack: mp_str, mp_int and mp_bin of msgpack.sh, which has to
# be beside this file, make some, and mp_json shows any.
#
# Lost replies are no trouble: every write carries a session and a number in it, so the same bytes
# may be sent again, and the write still runs once. A lost reply costs the connection, since it may
# come yet; the next attempt opens another one. A subshell has a connection and a session of its own,
# since what it counts does not come back. So value=$(zkv_get key) is fine, if slower.
#
# A function's exit status is that of the command line: 0 done, 1 NOT_FOUND or CONFLICT, 2 any other
# failure, 3 no reply. Of a failure zkv_error tells code, message, retry and applied.
#
# It takes bash 5.1 and coreutils, sed and iconv, and endpoints tcp://HOST:PORT. It cannot encrypt: a
# server that asks for CURVE is out of its reach, and it refuses to start where a key is given to it.

source "${BASH_SOURCE[0]%"${BASH_SOURCE[0]##*/}"}./msgpack.sh"

declare -gA zkv_reply=() zkv_error=() # zkv_reply: the packed value of each field of the last reply
declare -g zkv_body='' zkv_fd='' zkv_owner=''

# zkv_connect [ENDPOINT [TIMEOUT]]: seconds, for each attempt. The server need not be up.
zkv_connect() {
  zkv_endpoint=${1:-tcp://127.0.0.1:5555} zkv_timeout=${2:-5}
  if ! [[ $zkv_timeout =~ ^[0-9]*\.?[0-9]+$ && $zkv_endpoint =~ ^tcp://([^/:]+|\[[0-9a-fA-F:]+\]):([0-9]+)$ ]]; then
    _zkv_fail BAD_ENDPOINT "it takes tcp://HOST:PORT and a number of seconds, not $zkv_endpoint and $zkv_timeout"
    return
  fi
  zkv_host=${BASH_REMATCH[1]//[\[\]]/} zkv_port=${BASH_REMATCH[2]}
  if [[ ${ZKV_SERVER_PUBLIC_KEY-}${ZKV_KEY_FILE-} ]]; then
    _zkv_fail NO_CURVE "bash cannot encrypt, as ZKV_SERVER_PUBLIC_KEY and ZKV_KEY_FILE ask for"
  fi
}

zkv_close() {
  if [[ $zkv_fd ]]; then exec {zkv_fd}>&-; fi
  zkv_fd=
}

# ------------------------------------------------------------------------- operations

# Prints the value: text and bin as they are, anything else as JSON.
zkv_get() { local key && mp_str key "$1" && zkv_call GET key "$key" && mp_show "${zkv_reply[value]}"; }

# zkv_put KEY TEXT [NAME PACKED]...: prints the revision. Options: ttl, if_rev, durable.
zkv_put() {
  local key value
  mp_str key "$1" && mp_str value "$2"
  zkv_call PUT key "$key" value "$value" "${@:3}" && mp_json "${zkv_reply[rev]}"
}

zkv_delete() { local key && mp_str key "$1" && zkv_call DELETE key "$key" && mp_json "${zkv_reply[rev]}"; }

# zkv_mget KEY...: prints the values as a JSON array.
zkv_mget() {
  local head keys
  mp_head head 90 16 dd $# && mp_str keys "$@"
  zkv_call MGET keys "$head$keys" && mp_json "${zkv_reply[values]}"
}

# zkv_mput KEY TEXT [KEY TEXT]...: prints the revision.
zkv_mput() {
  local head items
  mp_head head 80 16 df $(($# / 2)) && mp_str items "$@"
  zkv_call MPUT items "$head$items" && mp_json "${zkv_reply[rev]}"
}

# zkv_incr KEY [BY]: prints the sum.
zkv_incr() {
  local key by
  mp_str key "$1"
  mp_int by "${2:-1}" || _zkv_fail BAD_INT "${2-}" || return
  zkv_call INCR key "$key" by "$by" && mp_json "${zkv_reply[value]}"
}

# zkv_cas KEY TEXT REVISION: stores only if the entry has this revision; 0 = only if there is none.
zkv_cas() { local rev && mp_int rev "$3" && zkv_put "$1" "$2" if_rev "$rev"; }

# zkv_scan [PREFIX]: prints a line for each entry, the JSON of [key, value, revision].
zkv_scan() {
  local prefix after=c0
  mp_str prefix "${1-}"
  while
    zkv_call SCAN prefix "$prefix" after "$after" || return
    local kind window packed=${zkv_reply[items]}
    local -i at=0 n=0 base=-1 count start
    mp_next
    for ((count = n; count > 0; count--)); do
      start=at
      mp_skip && mp_json "${packed:start*2:(at - start)*2}"
    done
    after=${zkv_reply[next]}
    [[ $after != c0 ]]
  do :; done
}

zkv_end() { zkv_call END && mp_json "${zkv_reply[rev]}"; }

# zkv_call OP [NAME PACKED]...: any op with its fields. The reply's are then in zkv_reply.
zkv_call() {
  local LC_ALL=C op=$1 fields part id='' session='' lost=''
  local -i count=$((($# + 1) / 2)) left=3
  if [[ $zkv_owner != "$BASHPID" ]]; then
    zkv_close
    zkv_owner=$BASHPID zkv_last_id=0 zkv_last_seq=0
    printf -v zkv_session %08x "$SRANDOM" "$SRANDOM" "$SRANDOM" "$SRANDOM"
  fi
  mp_str fields op "$op"
  for (( ; $# > 2; )); do
    case $2 in id) id=$3 ;; session) session=$3 ;; esac
    if [[ $2$3 == idc0 ]]; then # nil is as good as none
      id='' count+=-1
    else
      mp_str part "$2"
      fields+=$part$3
    fi
    shift 2
  done
  if [[ ! $id ]]; then
    mp_str part id && mp_int id $((++zkv_last_id))
    fields+=$part$id count+=1
  fi
  if [[ ! $session && " PUT DELETE TOUCH INCR MPUT MDELETE TXN " == *" $op "* ]]; then
    mp_str part session "$zkv_session" seq && fields+=$part
    mp_int part $((++zkv_last_seq)) && fields+=$part count+=2
  fi
  mp_head part 80 16 df $count
  if [[ $op == END ]]; then left=1; fi
  for (( ; left > 0; left--)); do
    if ! _zkv_exchange "$part$fields"; then
      zkv_close
      if [[ $zkv_asked ]]; then
        _zkv_fail HANDSHAKE_FAILED "the server asks for $zkv_asked, and bash cannot encrypt"
        return
      fi
      lost=1
    elif ! _zkv_is_reply_to "$id"; then
      zkv_close
      _zkv_fail BAD_REPLY "${zkv_body:0:80}"
      return
    elif [[ ${zkv_reply[ok]} == c3 ]]; then
      return 0
    elif [[ ! ${zkv_error[retry]} && ! ($lost && ${zkv_error[code]} == DEADLINE) ]]; then
      _zkv_status
      return
    elif ((left > 1)); then
      sleep 0.1
    fi
  done
  if [[ $lost ]]; then _zkv_fail NO_REPLY "none from $zkv_endpoint within $zkv_timeout s"; else _zkv_status; fi
}

# ------------------------------------------------------------------------- failures

_zkv_status() {
  case ${zkv_error[code]} in NOT_FOUND | CONFLICT) return 1 ;; NO_REPLY) return 3 ;; *) return 2 ;; esac
}

# A failure of the client's own: zkv_body is made up, too.
_zkv_fail() {
  local LC_ALL=C part retry=c2
  zkv_error=([code]=$1 [message]=$2 [retry]='' [applied]=nil)
  if [[ $1 == NO_REPLY ]]; then zkv_error[retry]=true retry=c3; fi
  mp_str part ok && zkv_body=85${part}c2
  mp_str part code "$1" message "$2" retry && zkv_body+=$part$retry
  mp_str part applied && zkv_body+=${part}c0
  _zkv_status
}

# Whether zkv_body is a reply to the request with this id; sets zkv_reply and zkv_error.
_zkv_is_reply_to() {
  local kind window packed=$zkv_body name text
  local -i at=0 n=0 base=-1 count start
  zkv_reply=() zkv_error=()
  mp_next && [[ $kind == map ]] || return
  for ((count = n; count > 0; count--)); do
    mp_next && [[ $kind == str ]] || return
    mp_take name
    start=at
    mp_skip || return
    zkv_reply[$name]=${packed:start*2:(at - start)*2}
  done
  ((at * 2 == ${#packed})) || return
  case ${zkv_reply[ok]-} in
    c3) _zkv_equal "${zkv_reply[id]-}" "$1" ;;
    c2)
      for name in code message; do
        packed=${zkv_reply[$name]-} at=0 base=-1
        mp_next && mp_take text && zkv_error[$name]=$text || return
      done
      case ${zkv_reply[retry]-} in c3) zkv_error[retry]=true ;; *) zkv_error[retry]='' ;; esac
      case ${zkv_reply[applied]-} in c2) zkv_error[applied]=false ;; *) zkv_error[applied]=nil ;; esac
      [[ ! -v zkv_reply[id] ]] || _zkv_equal "${zkv_reply[id]}" "$1" # none: it could not be read
      ;;
    *) return 1 ;;
  esac
}

# Whether two ids are the same, in whatever width they are packed.
_zkv_equal() {
  local kind window packed=$1 first
  local -i at=0 n=0 base=-1
  mp_next && first=${kind/bin/str}$n${packed:at*2} || return
  packed=$2 at=0 base=-1
  mp_next && [[ $first == "${kind/bin/str}$n${packed:at*2}" ]]
}

# ------------------------------------------------------------------------- ZMTP

# Sends a body and reads the one of the reply into zkv_body. Fails if there is none in time.
_zkv_exchange() {
  local got='' head left
  local -i end=0 flags=0
  printf -v end %.0f "${zkv_timeout}e6"
  end+=${EPOCHREALTIME/./} # microseconds
  printf -v head 010002%016x $((${#1} / 2)) # an empty frame, then the body's
  _zkv_open && _zkv_write "$head$1" || return
  _zkv_read_frame && [[ $flags == 1 && ! $got ]] || return
  _zkv_read_frame && ((flags == 0)) && zkv_body=$got
}

_zkv_open() {
  local zeros
  zkv_asked='' # for another mechanism than NULL: its name
  if [[ $zkv_fd ]]; then return; fi
  # Nothing limits the time that /dev/tcp takes. So another process tries first.
  until _zkv_time_left || return
    timeout --foreground "$left" "$BASH" -c 'exec 3<>"/dev/tcp/$0/$1"' "$zkv_host" "$zkv_port" 2>/dev/null &&
      { exec {zkv_fd}<>"/dev/tcp/$zkv_host/$zkv_port"; } 2>/dev/null; do
    sleep 0.1
  done
  printf -v zeros %062d 0
  # The greeting: signature, version 3.0, mechanism NULL, no server, filler. Then READY: Socket-Type is REQ.
  # The version's first byte has the server tell its mechanism. One that is not ours cuts the connection.
  _zkv_write ff00000000000000017f03 && _zkv_read 64 && [[ $got == ff????????????????7f03* ]] || return
  if [[ ${got:24:10} != 4e554c4c00 ]]; then
    zkv_asked=$(mp_bytes "${got:24:40}" | tr -d '\0')
    return 1
  fi
  _zkv_write "00""4e554c4c${zeros:0:32}""00$zeros" || return
  _zkv_write 0419"055245414459""0b536f636b65742d54797065""00000003524551" || return
  _zkv_read 2 && [[ $got == 04* ]] && _zkv_read $((16#${got:2})) && [[ $got == 055245414459* ]]
}

# The next frame that is no command: its flags (1: more follow) and its bytes, in hex.
_zkv_read_frame() {
  local size
  while
    _zkv_read 2 || return
    flags=16#${got:0:2} size=${got:2}
    if ((flags & 2)); then _zkv_read 7 && size+=$got || return; fi
    _zkv_read $((16#$size)) || return
    ((flags & 4))
  do :; done
  flags=$((flags & 1))
}

# Bytes into $got. One by one that is slow, but starting programs for a few takes longer.
_zkv_read() {
  local byte char LC_ALL=C
  local -i missing=$1
  got=''
  if ((missing > 1500)); then
    _zkv_time_left && got=$(timeout --foreground "$left" head -c "$missing" <&"$zkv_fd" | od -An -v -tx1 | tr -d ' \n')
    ((${#got} == 2 * missing))
    return
  fi
  for (( ; missing > 0; missing--)); do
    _zkv_time_left && IFS='' read -r -d '' -n 1 -t "$left" -u "$zkv_fd" char || return
    printf -v byte %02x "'$char" # NUL is what read stops at, so it comes as an empty char
    got+=$byte
  done
}

# In another process, which alone ends where the connection has gone (SIGPIPE), or takes no more.
_zkv_write() {
  _zkv_time_left || return
  if ((${#1} < 65536)); then # so little goes into the socket's buffer, and need not be waited for
    (mp_bytes "$1" >&"$zkv_fd") 2>/dev/null
  else
    mp_bytes "$1" | timeout --foreground "$left" cat >&"$zkv_fd" 2>/dev/null
  fi
}

_zkv_time_left() {
  local -i time=$((end - ${EPOCHREALTIME/./}))
  printf -v left %d.%06d $((time / 1000000)) $((time % 1000000))
  ((time > 0))
}

# ------------------------------------------------------------------------- command line

# For tests: each line of input is a request in hex, each line of output a reply.
_zkv_drive() {
  local packed kind window name op
  local -a fields
  local -i at=0 n=0 base=-1 count start
  while read -r packed; do
    at=0 base=-1 fields=() op=''
    mp_next && [[ $kind == map ]] || return
    for ((count = n; count > 0; count--)); do
      mp_next && mp_take name && start=at && mp_skip || return
      if [[ $name != op ]]; then
        fields+=("$name" "${packed:start*2:(at - start)*2}")
      else
        at=start && mp_next && mp_take op
      fi
    done
    zkv_call "$op" "${fields[@]}"
    echo "$zkv_body"
  done
}

# Like zkv_put, of what is on standard input: str if it is UTF-8, else bin.
_zkv_put_input() {
  local key value head
  value=$(od -An -v -tx1 | tr -d ' \n')
  if mp_bytes "$value" | iconv -f UTF-8 -t UTF-8 >/dev/null 2>&1; then
    mp_head head a0 32 db $((${#value} / 2)) && value=$head$value
  else
    mp_bin value "$value"
  fi
  mp_str key "$1" && zkv_call PUT key "$key" value "$value"
}

_zkv_main() {
  local usage='Usage: client.sh [-e ENDPOINT] [--timeout S] put KEY VALUE | get KEY | delete KEY | incr KEY [BY] | end | call'
  local endpoint=${ZKV_ENDPOINT-} timeout='' status command
  while [[ ${1-} == -e || ${1-} == --endpoint || ${1-} == --timeout ]]; do
    if [[ $1 == --timeout ]]; then timeout=${2:--}; else endpoint=${2:--}; fi
    shift $(($# < 2 ? $# : 2))
  done
  command=${1-}
  zkv_connect "$endpoint" "$timeout" &&
    case "${command,,} $#" in
      'put 3') if [[ $3 == - ]]; then _zkv_put_input "$2"; else zkv_put "$2" "$3" >/dev/null; fi ;;
      'get 2') zkv_get "$2" ;;
      'delete 2') zkv_delete "$2" >/dev/null ;;
      'incr 2' | 'incr 3') zkv_incr "${@:2}" ;;
      'end 1') zkv_end >/dev/null ;;
      'call 1') _zkv_drive ;;
      *) _zkv_fail BAD_USAGE "$usage" ;;
    esac
  status=$?
  if ((status > 0)); then
    echo "client.sh: ${zkv_error[code]}: ${zkv_error[message]}" >&2
  elif [[ ${command,,} == @(put|delete|end) ]]; then
    echo "OK, revision $(mp_json "${zkv_reply[rev]}")" >&2
  fi
  exit $status
}

if [[ $0 == "${BASH_SOURCE[0]}" ]]; then _zkv_main "$@"; fi
