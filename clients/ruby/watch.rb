#!/usr/bin/env ruby
# frozen_string_literal: true

# Prints every change of a zkv server's keys, as it happens: watch.rb [ENDPOINT [PREFIX]]
#
# The change feed, a SUB socket, is used as a bell: its heartbeat comes after every burst of changes
# and once a second, and tells the newest revision. The changes themselves are asked for with
# CHANGES. So each is printed once and in order, whatever becomes of connections in between.
#
# Of several endpoints it follows the server that leads: one that another has superseded goes on to
# beat. A server that was promoted goes on with the revisions, far above the last one.

require_relative "client"

SILENCE = 5 # seconds without a heartbeat after which the connection is taken to be dead
CHECK = 1 # seconds between two looks whether a server still leads
HEARTBEAT = "\0"

def listen(client, context, feed)
  context.socket(ZMQ::SUB).tap do |socket|
    socket.setsockopt(ZMQ::LINGER, 0)
    socket.setsockopt(ZMQ::SUBSCRIBE, HEARTBEAT)
    socket.setsockopt(ZMQ::RCVTIMEO, SILENCE * 1000)
    client.secure(socket, feed)
    socket.connect(feed)
  end
end

# Where the server publishes; of several, the one that leads.
def find_feed(client, list)
  client.call("MGET", keys: []) if list # only a server that leads answers that
  client.call("INFO")["feed"] or abort "the server publishes nothing"
end

# The same; waits until there is one that leads.
def find_next_feed(client)
  find_feed(client, true)
rescue Zkv::Error => e
  raise unless e.retry?

  sleep CHECK
  retry
end

# Yields the revision up to which everything is printed, again and again.
def print_changes(client, since, prefix)
  loop do
    page = client.call("CHANGES", since: since, prefix: prefix)
    page["changes"].each do |rev, op, key, value|
      puts [rev, op, key, *(Zkv::Msgpack.to_json(value) unless %w[DELETE EXPIRE].include?(op))].join("\t")
    end
    yield since = page["next"]
    return if since >= page["rev"]
  end
rescue Zkv::Error => e
  raise unless e.code == "COMPACTED"

  warn "changes from revision #{since + 1} to #{e.reply['oldest'] - 1} are not known any more"
  since = e.reply["oldest"] - 1
  retry
end

# Yields as print_changes, with what a server that was superseded still has: the other one has it,
# too, but not as changes. What one has that leads may be in no other history.
def print_rest(endpoint, since, prefix, &told)
  old = Zkv::Client.new(endpoint, timeout: 1)
  old.call("MGET", keys: [])
rescue Zkv::Error => e
  begin
    print_changes(old, since, prefix, &told) if e.code == "NOT_LEADER"
  rescue Zkv::Error
    nil # it has gone, too
  end
ensure
  old&.close
end

now = -> { Process.clock_gettime(Process::CLOCK_MONOTONIC) }
endpoint = ARGV[0] || Zkv::DEFAULT_ENDPOINT
list = endpoint.include?(",")
client = Zkv::Client.new(endpoint)
prefix = ARGV[1] || ""
feed = find_feed(client, list)
followed = client.endpoint
context = ZMQ::Context.new
socket = listen(client, context, feed)
checked = now.call
beat = seen = nil # the revision of the last heartbeat of this feed; CHANGES may be ahead of it
$stdout.sync = true
begin
  loop do
    frames = []
    silent = socket.recv_strings(frames).negative? # or a signal
    found = feed
    if list && (silent || now.call >= checked + CHECK)
      found = find_next_feed(client)
      checked = now.call
    end
    if silent || found != feed
      socket.close
      client.next_key if silent # the server may have another one now
      if found != feed
        print_rest(followed, seen, prefix) { |at| seen = at } if seen
        beat = nil
      end
      followed = client.endpoint
      feed = found
      socket = listen(client, context, feed)
      next
    end
    rev = Zkv::Msgpack.unpack(frames[1])["rev"]
    warn "following #{feed} from revision #{seen || rev}" if beat.nil?
    went_back = beat && rev < beat
    warn "the store went back to revision #{rev}" if went_back
    seen = rev if seen.nil? || went_back
    beat = rev
    begin
      print_changes(client, seen, prefix) { |at| seen = at } if rev > seen
    rescue Zkv::Error => e
      raise unless list && e.retry? # else the server is gone, which the next silence tells
    end
  end
rescue Interrupt
  exit 130
end
