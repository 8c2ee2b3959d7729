#!/usr/bin/env ruby
# frozen_string_literal: true

# Prints every change of a zkv server's keys, as it happens: watch.rb [ENDPOINT [PREFIX]]
#
# The change feed, a SUB socket, is used as a bell: its heartbeat comes after every burst of changes
# and once a second, and tells the newest revision. The changes themselves are asked for with
# CHANGES. So each is printed once and in order, whatever becomes of connections in between.

require_relative "client"

SILENCE = 5 # seconds without a heartbeat after which the connection is taken to be dead
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

def print_changes(client, since, prefix)
  loop do
    page = client.call("CHANGES", since: since, prefix: prefix)
    page["changes"].each do |rev, op, key, value|
      puts [rev, op, key, *(Zkv::Msgpack.to_json(value) unless %w[DELETE EXPIRE].include?(op))].join("\t")
    end
    since = page["next"]
    return since if since >= page["rev"]
  end
rescue Zkv::Error => e
  raise unless e.code == "COMPACTED"

  warn "changes from revision #{since + 1} to #{e.reply['oldest'] - 1} are not known any more"
  since = e.reply["oldest"] - 1
  retry
end

client = Zkv::Client.new(ARGV[0] || Zkv::DEFAULT_ENDPOINT)
prefix = ARGV[1] || ""
feed = client.call("INFO")["feed"] or abort "the server publishes nothing"
context = ZMQ::Context.new
socket = listen(client, context, feed)
beat = seen = nil # the revision of the last heartbeat; CHANGES may be ahead of it
$stdout.sync = true
begin
  loop do
    frames = []
    if socket.recv_strings(frames).negative? # silence, or a signal
      socket.close
      client.next_key # the server may have another one now
      socket = listen(client, context, feed)
      next
    end
    rev = Zkv::Msgpack.unpack(frames[1])["rev"]
    if beat.nil? || rev < beat
      warn beat ? "the store went back to revision #{rev}" : "following #{feed} from revision #{rev}"
      seen = rev
    end
    beat = rev
    seen = print_changes(client, seen, prefix) if rev > seen
  end
rescue Interrupt
  exit 130
end
