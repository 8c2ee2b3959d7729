#!/usr/bin/env perl

# Prints every change of a zkv server's keys, as it happens: watch.pl [ENDPOINT [PREFIX]]
#
# The change feed, a SUB socket, is used as a bell: its heartbeat comes after every burst of changes
# and once a second, and tells the newest revision. The changes themselves are asked for with
# CHANGES. So each is printed once and in order, whatever becomes of connections in between.

use v5.20;
use warnings;
use Errno qw(EINTR);
use File::Basename qw(dirname);
use ZMQ::FFI;
use ZMQ::FFI::Constants qw(ZMQ_SUB ZMQ_RCVTIMEO);

require(dirname(__FILE__) . '/client.pl');

use constant SILENCE => 5;    # seconds without a heartbeat after which the connection is taken to be dead
my $JSON = JSON::PP->new->utf8->allow_nonref->allow_blessed->convert_blessed;

sub listen_to {
    my ($client, $context, $feed) = @_;
    my $socket = $context->socket(ZMQ_SUB);
    $client->secure($socket, $feed);
    $socket->die_on_error(0);
    $socket->set_linger(0);
    $socket->set(ZMQ_RCVTIMEO, 'int', SILENCE * 1000);
    $socket->subscribe("\0");    # the topic of heartbeats
    $socket->connect($feed);
    return $socket;
}

sub changes {
    my ($client, $since, $prefix) = @_;
    my $page = eval { $client->call('CHANGES', since => $since, prefix => $prefix) };
    if ($page) { return $page }
    my $error = $@;
    if (!ref $error || $error->{code} ne 'COMPACTED') { die $error }
    my $last_lost = $error->{reply}{oldest} - 1;
    warn 'changes from revision ', $since + 1, " to $last_lost are not known any more\n";
    return changes($client, $last_lost, $prefix);
}

sub print_changes {
    my ($client, $since, $prefix) = @_;
    while (1) {
        my $page = changes($client, $since, $prefix);
        for my $change (@{ $page->{changes} }) {
            my ($rev, $op, $key, $value) = @$change;
            utf8::encode($key);
            say join "\t", $rev, $op, $key, $op =~ /^(?:DELETE|EXPIRE)$/ ? () : $JSON->encode($value);
        }
        $since = $page->{next};
        if ($since >= $page->{rev}) { return $since }
    }
}

STDOUT->autoflush;
my ($endpoint, $prefix) = @ARGV;
utf8::decode($prefix //= '');
my $client  = Zkv::Client->new($endpoint);
my $feed    = $client->call('INFO')->{feed} // die "the server publishes nothing\n";
my $context = ZMQ::FFI->new;
my $socket  = listen_to($client, $context, $feed);
my ($beat, $seen);    # the revision of the last heartbeat; CHANGES may be ahead of it
while (1) {
    my ($topic, $body) = $socket->recv_multipart;
    if ($socket->has_error) {
        if ($socket->last_errno == EINTR) { next }
        $socket->close;
        $client->next_key;    # the server may have another one now
        $socket = listen_to($client, $context, $feed);
        next;
    }
    my $rev = Zkv::Msgpack::decode($body)->{rev};
    if (!defined $beat || $rev < $beat) {
        warn defined $beat ? "the store went back to revision $rev\n" : "following $feed from revision $rev\n";
        $seen = $rev;
    }
    $beat = $rev;
    if ($rev > $seen) { $seen = print_changes($client, $seen, $prefix) }
}
